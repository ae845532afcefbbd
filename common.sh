# What the shell scripts share. A script sets its variables, then reads this file: source ./common.sh

# Ends the script because of a user's mistake.
fail() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 2
}

# Ends the script unless each of these variables is yes or no.
check_yes_no() {
    local name
    for name; do
        [[ ${!name} == yes || ${!name} == no ]] || fail "$name=${!name} is neither yes nor no"
    done
}

# Ends the script if one of these variables names a file or a model that does not exist. A variable can be empty, and a
# model can be an id of the Hugging Face Hub. Call: check_exists ADVICE VARIABLE...
check_exists() {
    local name advice=$1 hub_id='^[A-Za-z0-9][^/]*(/[^/]+)?$'
    shift
    for name; do
        [[ -n ${!name} ]] || continue
        case $name in
            *_model) [[ -e ${!name}/config.json || -e ${!name}/bert_config.json || ${!name} =~ $hub_id ]] ;;
            *) [[ -r ${!name} ]] ;;
        esac || fail "$name=${!name} does not exist; $advice, or set $name"
    done
}

[[ -z ${fp16:-} ]] || fail "fp16=$fp16 is an old name; set precision=auto, fp32, bf16 or fp16"
[[ ${num_processes:-1} =~ ^[1-9][0-9]{0,3}$ ]] || fail "num_processes=$num_processes is not a number from 1 to 9999"

# The start of a command that runs a script in num_processes processes. They share the CPU's cores.
launch=("$python")
if [[ ${num_processes:-1} != 1 ]]; then
    cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
    threads=${OMP_NUM_THREADS:-$((cores > num_processes ? cores / num_processes : 1))}
    launch=(env OMP_NUM_THREADS="$threads"
        "$python" -m torch.distributed.run --standalone --nproc_per_node "$num_processes")
fi

# With setpriv, a command that `run` starts gets SIGTERM when this shell is killed.
until_killed=
if setpriv --pdeathsig TERM true 2>/dev/null; then until_killed="setpriv --pdeathsig TERM --"; fi

# Runs a command, and passes SIGHUP, SIGINT, SIGQUIT and SIGTERM on to it, as SIGTERM. It waits until the command has
# ended: distill.py saves a checkpoint first. If bash ran the command in the foreground, `kill` would end bash alone.
# The status is 75 if distill.py can resume, or else 128 + the signal's number. Functions cannot be commands here.
run() {
    local command='' ended_by='' interrupted status
    local name pass_on='interrupted=yes; kill $command 2>/dev/null || :'
    for name in HUP:1 INT:2 QUIT:3 TERM:15; do
        trap "ended_by=$((128 + ${name#*:})); $pass_on" "${name%:*}"
    done
    $until_killed "$@" <&0 & # otherwise the input would be empty
    command=$!
    [[ -z $ended_by ]] || kill "$command"
    while
        interrupted='' status=0
        wait "$command" || status=$?
        [[ -n $interrupted ]]
    do :; done
    trap - HUP INT QUIT TERM
    [[ -z $ended_by || $status == 75 ]] || status=$ended_by
    return "$status"
}

# Sets `features` to the features file of a set (train, dev, test, general); tokenizes if needed. A file that is named
# is made only if it is missing. Otherwise the file is beside the pairs, and it is made again if the pairs are newer.
# Call: tokenize SET_NAME PAIRS MODEL [FEATURES_FILE]
tokenize() {
    local stem=${2%.gz} kind=
    [[ $do_lower_case == yes ]] || kind=.cased
    [[ $1 != general ]] || kind=$kind.general
    features=${4:-${stem%.t[sx][vt]}.$max_seq_length$kind.features}
    [[ -n ${4:-} && -e $features || -e $2 && $features -nt $2 ]] && return
    [[ -r $2 ]] || fail "${1/general/train}_pairs=$2 does not exist; make it first"
    run "$python" tokenize_to_features.py --set_name="$1" --raw_data_file="$2" --output_features_file="$features" \
        --bert_model_dir="$3" --max_seq_length="$max_seq_length" --do_lower_case="$do_lower_case" --overwrite
}

# Prints MRR and MRR@10 of a run. Call: measures QRELS RUN
measures() {
    "$python" msmarco_mrr_eval.py -- "$1" "$2" | LC_ALL=C awk '/^MRR/ {printf "  %8.4f", $2}'
}

# --- the recipes in experiments/. They set `data`, `models` and `runs`.

# Runs a command unless its output exists. Call: make OUTPUT COMMAND...
make() {
    [[ -e $1 ]] || run "${@:2}"
}

# Runs a script of data_preparation/ unless its output exists. Call: prepare OUTPUT NAME FLAGS...
prepare() {
    make "$1" "$python" "data_preparation/$2.py" "${@:3}"
}

# Makes train_pairs.tsv: the pairs without the positives that the teacher scores low. The report is written last.
# Call: filter_pairs PAIRS POSITIVES FLAGS_OF_RERANK...
filter_pairs() {
    tokenize test "$2" "$models/teacher" "$data/positives.$max_seq_length.features"
    make "$data/positives.scores.tsv" "$python" rerank.py --model_dir="$models/teacher" --features_file="$features" \
        --output_scores_file="$data/positives.scores.tsv" --device="$device" "${@:3}"
    prepare "$data/train_pairs.tsv.report.json" filter_positives --pairs_file="$1" \
        --scores_file="$data/positives.scores.tsv" --threshold="$threshold" --best="$best_positives" \
        --output_pairs_file="$data/train_pairs.tsv" --overwrite
}

# Re-ranks with a student, and with the teacher if its run is missing. Call: rerank RUNS_DIR STUDENT VARIABLE=VALUE...
rerank() {
    local teacher=$models/teacher
    [[ ! -e $1/teacher.run ]] || teacher=
    make "$1/${2##*/}.run" env "${@:3}" runs_dir="$1" teacher_model="$teacher" student_model="$2" bash reranker.sh
}
