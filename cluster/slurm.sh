#!/usr/bin/env bash
# A campaign on Slurm: one Ray node on each machine, and the campaign itself on the first.
#
#     sbatch --nodes=4 cluster/slurm.sh inject model.onnx --ber 1e-6,1e-5
#
# All machines see the same files, and have proact-onnx with the extra "distributed" on their PATH.
# A job that ran out of time goes on where the record stops when it is submitted again.
#SBATCH --job-name=proact-campaign
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --exclusive
#SBATCH --time=12:00:00
set -euo pipefail

cpus=${SLURM_CPUS_PER_TASK:?submit this file with sbatch}
port=${RAY_PORT:-6379}
mapfile -t machines < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${machines[0]}
head_address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address)
head_address=${head_address%% *}:$port

# Others share the network: the cluster takes nobody without this job's secret.
RAY_AUTH_TOKEN=$(python3 -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

nodes=()
end_cluster() {
    for node in "${nodes[@]}"; do
        kill "$node" 2>/dev/null || true
    done
    wait
}
trap end_cluster EXIT

# Every step shares the machines with the campaign, which takes little.
start_node() {
    local machine=$1
    shift
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$machine" \
        ray start --block --num-cpus="$cpus" "$@" &
    nodes+=($!)
}

start_node "$head" --head --port="$port" --include-dashboard=false
for _ in $(seq 60); do
    ray status --address "$head_address" >/dev/null 2>&1 && break
    sleep 1
done
for machine in "${machines[@]:1}"; do
    start_node "$machine" --address="$head_address"
done

workers=$((cpus * ${#machines[@]}))
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    proact-onnx "$@" --ray "$head_address" --workers "$workers" --threads 1
