#!/usr/bin/env bash
# `make quickstart` and `make quickstart-down`: a cluster with an application on it, and no trace of either.
set -euo pipefail
cd "$(dirname "$0")/.."

FLUYT=${FLUYT:-target/x86_64-unknown-linux-gnu/release/fluyt}
KUBECTL=${KUBECTL:-kubectl}
CLUSTER=demo
GROUP=rg
export KUBECONFIG=${KUBECONFIG:-$HOME/.kube/config}

step() { printf '\n\033[1m%s\033[0m\n' "$*"; }

fail() { echo "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail 'Nodes are made of namespaces, mounts and cgroups: please run this as root.'

up() {
    step 'Starting the service'
    if ! "$FLUYT" aks list >/dev/null 2>&1; then
        mkdir -p /var/lib/fluyt
        setsid "$FLUYT" serve >/var/lib/fluyt/serve.log 2>&1 </dev/null &
        local service=$!
        until "$FLUYT" login >/dev/null 2>&1; do
            kill -0 "$service" 2>/dev/null || { tail -n 5 /var/lib/fluyt/serve.log >&2; fail 'The service did not start.'; }
            sleep 0.1
        done
    fi
    "$FLUYT" group create -n "$GROUP" -o none
    step "Creating the cluster \"$CLUSTER\" with two nodes of Standard_D2s_v3"
    "$FLUYT" aks create -g "$GROUP" -n "$CLUSTER" --node-count 2 --node-vm-size Standard_D2s_v3 -o table
    "$FLUYT" aks get-credentials -g "$GROUP" -n "$CLUSTER" --overwrite-existing
    "$KUBECTL" wait --for=condition=Ready nodes --all --timeout=60s
    "$KUBECTL" get nodes -o wide

    step 'Deploying the sample application'
    "$KUBECTL" apply -f examples/guestbook
    "$KUBECTL" -n guestbook rollout status statefulset/store --timeout=120s
    "$KUBECTL" -n guestbook rollout status deployment/web --timeout=120s
    "$KUBECTL" -n guestbook wait service/web --for=jsonpath='{.status.loadBalancer.ingress[0].ip}' --timeout=60s >/dev/null
    "$KUBECTL" -n guestbook get pods,pvc,services -o wide

    local address
    address=$("$KUBECTL" -n guestbook get service web -o jsonpath='{.status.loadBalancer.ingress[0].ip}')
    step "Asking it: http://$address/"
    curl -fsS --retry 20 --retry-delay 1 --retry-all-errors -d 'entry=Hello from quickstart' "http://$address/"
    curl -fsS --retry 20 --retry-delay 1 --retry-all-errors "http://$address/"

    step 'It runs. How to go on'
    cat <<EOF
  export PATH=\$PATH:$PWD/$(dirname "$FLUYT"):$PWD/$(dirname "$KUBECTL")
  fluyt aks get-credentials -g $GROUP -n $CLUSTER        # done already; merges into $KUBECONFIG
  kubectl get pods -A -o wide
  kubectl -n guestbook scale deployment web --replicas 5
  fluyt aks scale -g $GROUP -n $CLUSTER --node-count 3
  fluyt aks delete -g $GROUP -n $CLUSTER
  make quickstart-down                          # removes every trace
EOF
}

down() {
    step 'Removing the cluster, the service and their data'
    "$FLUYT" serve --stop-all
}

case "${1:-}" in
    up | down) "$1" ;;
    *) fail 'usage: quickstart.sh up|down' ;;
esac
