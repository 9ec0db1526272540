"""What stands behind a controller's requests.

`base` holds the protocols and their errors (floor 1), `wrap` what can be put around any of them. The rest speaks to
real parts: kube* to API servers, dms to gNOI and gNMI servers, netlink and host_network to a kernel, bfb to a mounted
volume; `lab` starts such parts on this machine. Third-party clients are imported there and nowhere else.
"""
