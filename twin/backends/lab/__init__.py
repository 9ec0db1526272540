"""The lab: a fleet on this machine with the real parts.

binaries       find or build etcd, kube-apiserver, kube-controller-manager and kubectl
certificates   certificate authorities, server and client certificates, kubeconfigs
processes      programs of one lab folder, found again by their mark even after the starter died
control_plane  etcd, API servers sharing it by prefix, controller managers
dms_emulator   a gRPC DMS per host over the device state machine
netns          network namespaces, bridges and function stand-ins of emulated hosts and DPUs
lab            all of it together: up, status, down
"""
