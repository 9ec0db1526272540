"""The text of our bf.cfg. `twin.model.bfcfg` fills in the marks `@NAME@`; what a part is for stands beside it."""

from typing import Final

TEMPLATE: Final = r"""# bf.cfg of @HOSTNAME@
@PARAMETERS@

# The token in here must not stay on the installed system.
bfb_post_install() {
    rm -f /mnt/etc/bf.cfg
}

# Runs in the new root before its first start: networking is ours, not cloud-init's, and user data comes from here.
bfb_modify_os() {
    mkdir -p /mnt/etc/cloud/cloud.cfg.d /mnt/var/lib/cloud/seed/nocloud-net
    echo "network: {config: disabled}" > /mnt/etc/cloud/cloud.cfg.d/99-dpf-no-network.cfg
    chroot /mnt systemctl enable hbn-sync.service || true
    cat > /mnt/var/lib/cloud/seed/nocloud-net/user-data <<'DPF_USER_DATA'
#cloud-config
hostname: @HOSTNAME@
preserve_hostname: false
users:
  - name: ubuntu
    lock_passwd: false
    @PASSWORD@
    shell: /bin/bash
    groups: [sudo]
    sudo: ALL=(ALL) NOPASSWD:ALL
chpasswd:
  expire: @EXPIRE@
write_files:
  - path: /etc/netplan/60-dpf.yaml
    permissions: "0600"
    content: |
      network:
        version: 2
        renderer: networkd
        ethernets:
          oob_net0: {dhcp4: false, optional: true}
          tmfifo_net0: {addresses: [192.168.100.2/30]}
          pf0vf0: {mtu: @CONTROL_PLANE_MTU@, optional: true}
        bridges:
          br-comm-ch: {dhcp4: true, interfaces: [pf0vf0], mtu: @CONTROL_PLANE_MTU@}
  - path: /etc/dpf/settings
    content: |
      CONTROL_PLANE_MTU=@CONTROL_PLANE_MTU@
      PF_MTU=@PF_MTU@
      PFS="@PFS@"
      SFS=@SFS@
      TRUSTED_SFS=@TRUSTED_SFS@
      NVCONFIG="@NVCONFIG@"
      REGISTRY="@REGISTRY@"
      DPF_REBOOT=@REBOOT@
  - path: /etc/modules-load.d/99-dpf.conf
    content: |
      br_netfilter
  - path: /etc/sysctl.d/98-dpf-kubernetes.conf
    content: |
      net.ipv4.ip_forward = 1
      net.bridge.bridge-nf-call-iptables = 1
      net.bridge.bridge-nf-call-ip6tables = 1
  - path: /etc/sysctl.d/99-dpf.conf
    content: |
@SYSCTL@
  - path: /etc/default/grub.d/99-dpf.cfg
    content: |
      GRUB_CMDLINE_LINUX="@KERNEL@"
  - path: /etc/systemd/system/kubelet.service.d/99-dpf.conf
    content: |
      [Service]
      Environment="KUBELET_EXTRA_ARGS=--hostname-override=@HOSTNAME@"
  - path: /opt/dpf/sfs.sh
    permissions: "0755"
    content: |
      #!/bin/bash
      # Scalable functions of the first PF: untrusted from index 0, trusted ones (one more than asked) from 100.
      . /etc/dpf/settings
      device=0000:03:00.0
      last=$((SFS - 1))
      for n in $(seq 0 $last); do
        /sbin/mlnx-sf --action create --device $device --sfnum $n
      done
      if [ "$TRUSTED_SFS" -gt 0 ]; then
        for n in $(seq 100 $((100 + TRUSTED_SFS))); do
          /sbin/mlnx-sf --action create --device $device --sfnum $n --trust on
        done
      fi
      for pf in $PFS; do
        ip link set dev $pf mtu $PF_MTU || true
      done
      until ip -4 addr show br-comm-ch | grep -q inet; do
        sleep 5
      done
  - path: /opt/dpf/join.sh
    permissions: "0755"
    content: |
      #!/bin/bash
      # Joins the DPU cluster once in the life of this installation, however long that takes.
      done=/opt/dpf/joined_cluster_successfully
      [ -e $done ] && exit 0
      until ip -4 addr show br-comm-ch | grep -q inet; do
        sleep 5
      done
      until @JOIN_COMMAND@; do
        sleep 5
      done
      touch $done
  - path: /opt/dpf/nvconfig.sh
    permissions: "0755"
    content: |
      #!/bin/bash
      . /etc/dpf/settings
      [ -z "$NVCONFIG" ] && exit 0
      mst start
      for device in /dev/mst/*; do
        mlxconfig -d $device -y reset
        mlxconfig -d $device -y set $NVCONFIG
      done
  - path: /opt/dpf/mode.sh
    permissions: "0755"
    content: |
      #!/bin/bash
      for device in /dev/mst/*; do
        mlxconfig -d $device -y set INTERNAL_CPU_MODEL=1 INTERNAL_CPU_OFFLOAD_ENGINE=0
      done
  - path: /opt/dpf/ovs.sh
    permissions: "0755"
    content: |
      #!/bin/bash
      set -e
@OVS@
  - path: /opt/dpf/containerd.sh
    permissions: "0755"
    content: |
      #!/bin/bash
      . /etc/dpf/settings
      [ -z "$REGISTRY" ] && exit 0
      mkdir -p /etc/containerd/certs.d/nvcr.io
      printf '[host."%s"]\n  skip_verify = true\n' "$REGISTRY" > /etc/containerd/certs.d/nvcr.io/hosts.toml
  - path: /opt/dpf/restart.sh
    permissions: "0755"
    content: |
      #!/bin/bash
      . /etc/dpf/settings
      update-grub
      sysctl --system
      $DPF_REBOOT
  - path: /etc/systemd/system/bootstrap-dpf.service
    content: |
      [Unit]
      After=network-online.target openvswitch-switch.service
      [Service]
      Type=oneshot
      RemainAfterExit=true
      ExecStart=/opt/dpf/sfs.sh
      [Install]
      WantedBy=multi-user.target
  - path: /etc/systemd/system/kubeadm-join.service
    content: |
      [Unit]
      After=bootstrap-dpf.service
      [Service]
      Type=oneshot
      RemainAfterExit=true
      ExecStart=/opt/dpf/join.sh
      [Install]
      WantedBy=multi-user.target
  - path: /etc/systemd/system/dpf-netplan-apply.service
    content: |
      [Service]
      Type=oneshot
      ExecStart=/usr/sbin/netplan apply
      [Install]
      WantedBy=multi-user.target
@FILES@
runcmd:
  - hostnamectl set-hostname @HOSTNAME@
  - modprobe br_netfilter
  - sysctl --system
  - systemctl stop kubelet
  - rm -f /etc/systemd/system/kubelet.service.d/90-kubelet-bluefield.conf /etc/resolv.conf.d/dpf-stale
  - systemctl enable --now containerd
  - systemctl daemon-reload
  - systemctl enable --now --no-block dpf-netplan-apply.service bootstrap-dpf.service kubeadm-join.service
  - /opt/dpf/nvconfig.sh
  - /opt/dpf/mode.sh
  - /opt/dpf/ovs.sh
  - /opt/dpf/containerd.sh
  - systemctl restart containerd
  - /opt/dpf/restart.sh
DPF_USER_DATA
}
"""
