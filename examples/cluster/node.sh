#!/usr/bin/env bash
# node.sh DIRECTORY BINARIES NAME ADDRESS GPUS: containerd, a device plugin and a kubelet, until one of them ends.
# To be run in mount and PID namespaces of its own: whatever it mounts and starts is gone with it.
set -euo pipefail
directory=$1 name=$3 address=$4 gpus=$5
PATH=$2:$PATH
cd "$directory"
mkdir -p kubelet/device-plugins cni /var/lib/kubelet /var/lib/cni /run/containerd
# Where the programs of a node look whatever they are told: device plugins for the kubelet's socket, CNI plugins for
# their leases, containerd for its shims.
mount --bind kubelet /var/lib/kubelet
mount --bind cni /var/lib/cni
mount -t tmpfs sockets /run/containerd
containerd -c containerd.toml >containerd.log 2>&1 &
until ctr --address "$directory/containerd.sock" version >/dev/null 2>&1; do sleep 0.2; done
device_plugin "$gpus" >device_plugin.log 2>&1 &
while true; do # as systemd would, but where it is told to stay away
    sleep 1
    [[ ! -e kubelet.away ]] || continue
    touch kubelet.runs
    kubelet --config=kubelet.yaml --kubeconfig=kubelet.kubeconfig --hostname-override="$name" --node-ip="$address" &
    while kill -0 $! && [[ ! -e kubelet.away ]]; do sleep 0.5; done
    kill -KILL $! || true
    wait $! || true
    rm kubelet.runs
done >kubelet.log 2>&1 &
wait -n
