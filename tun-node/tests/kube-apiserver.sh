#!/bin/bash
# The Kubernetes source against a real kube-apiserver over a real etcd.
#
#   KUBE_APISERVER=/path/to/kube-apiserver [ETCD=/path/to/etcd] tun-node/tests/kube-apiserver.sh
#
# Applies the manifests of tun-node/deploy/kubernetes, takes a token of their service account, runs
# two nodes with it, and then lets the server be silent, be killed, and come back. As root, two
# whole nodes in network namespaces find each other by it, with the service account where a Pod
# finds it, and carry packets between Pods. Needs openssl.
#
# Debian has no package of the server, but its source package builds without a network in about
# seven minutes on two cores (golang-go 1.19, rsync, make; kubernetes 1.20.2):
#
#   apt-get source --download-only kubernetes && tar xzf kubernetes_*.orig.tar.gz && cd kubernetes-1.20.2
#   # The vendored reflect2 is older than Go 1.18 permits; take Debian's
#   # (golang-github-modern-go-reflect2-dev).
#   R=vendor/github.com/modern-go/reflect2; rm $R/*.go $R/*.s
#   cp /usr/share/gocode/src/github.com/modern-go/reflect2/*.[gs]* $R/; rm -f $R/*_test.go
#   mkdir -p .go/src/k8s.io && ln -s ../../.. .go/src/k8s.io/kubernetes
#   GOPATH=$PWD/.go CGO_ENABLED=0 KUBE_GIT_VERSION=v1.20.2 make WHAT=cmd/kube-apiserver
set -euo pipefail
if [[ ! -x ${KUBE_APISERVER:-} ]]; then
    echo "SKIP: set KUBE_APISERVER to a kube-apiserver (see the head of this script)"
    exit 0
fi
KUBE_APISERVER=$(readlink -f "$KUBE_APISERVER")
export KUBE_APISERVER
cd "$(dirname "$(readlink -f "$0")")/../.."
exec cargo test -p tun-node --test kubernetes -- --ignored --nocapture --test-threads=1 real::
