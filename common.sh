# What the shell scripts share. A script reads this file before it sets its variables: source ./common.sh

default_python=python
[[ ! -x .venv/bin/python ]] || default_python=.venv/bin/python

# Ends the script because of a user's mistake.
fail() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 2
}

# --- settings: the lines `variable=${variable:-default}  # comment` at the top of a script

setting_line='^([a-z][a-z0-9_]*)=[$][{][a-z0-9_]+:?-([^}]*)[}] *(# *(.*))?$'

# Names that variables have in other programs. They are refused, with the right name.
other_names='learning_rate lr
num_train_epochs epochs num_epochs train_epochs
train_batch_size batch_size
eval_batch_size batch_size
max_seq_length max_length max_len max_seq_len seq_length
gradient_accumulation_steps accumulation_steps grad_accum
warmup_proportion warmup warmup_ratio warmup_steps
layer_map layers
distill_model_type distill_model method
teacher_model teacher
student_model student
output_student_dir output_dir student_dir
early_stopping_patience patience
seed random_seed
num_processes num_gpus'

# Takes arguments VARIABLE=VALUE like variables before the command; --help prints the variables. Refuses other names.
# Call: read_arguments SCRIPT "$@"
read_arguments() {
    local argument key script=$1
    settings=$(awk '/^[a-z][a-z0-9_]*=[$][{]/ {found = 1; print; next} found && NF && !/^ *#/ {exit} {print}' "$1")
    variables=$(while IFS= read -r argument; do
        [[ ! $argument =~ $setting_line ]] || printf '%s\n' "${BASH_REMATCH[1]}"
    done <<<"$settings")
    shift
    for argument; do
        [[ $argument != --help && $argument != -h ]] || print_help
    done
    for argument; do
        key=${argument%%=*}
        if [[ $argument != *=* ]] || ! is_variable "$key"; then
            if [[ $script == experiments/* && $key =~ ^[a-z_0-9]+$ ]] && grep -q "^$key=[$]{" distill.sh; then
                fail "$key is a variable of distill.sh, which this script calls; set it before the command:" \
                    "$key=... bash $script"
            fi
            key=${key//[!A-Za-z0-9_-]/?}
            fail "${key:0:60} is not a VARIABLE=VALUE of this script; the nearest is $(nearest "${key:0:60}")=," \
                "--help lists all"
        fi
        export "$key=${argument#*=}"
    done
    for key in $(cut -d ' ' -f 2- <<<"$other_names"); do
        is_variable "$key" || [[ -z ${!key:-} || -z $(right_name "$key") ]] ||
            fail "$key is set, but it is not a variable of this script; set $(right_name "$key")"
    done
}

is_variable() {
    [[ $1 != *[!a-z0-9_]* && $'\n'$variables$'\n' == *$'\n'"$1"$'\n'* ]]
}

# Prints the variable of this script that has the name $1 in other programs, if there is one.
right_name() {
    local key others
    while read -r key others; do
        [[ " $others " != *" $1 "* ]] || ! is_variable "$key" || { printf '%s' "$key" && return; }
    done <<<"$other_names"
}

# Prints the variable whose name is nearest to $1: the right name for it, or the one with the smallest edit distance.
nearest() {
    local key
    key=${1#--}
    key=$(right_name "$key")
    [[ -z $key ]] || { printf '%s' "$key" && return; }
    given=${1#--} awk '
        {
            given = ENVIRON["given"]
            for (i = 0; i <= length(given); i++) d[i, 0] = i
            for (j = 0; j <= length($0); j++) d[0, j] = j
            for (i = 1; i <= length(given); i++)
                for (j = 1; j <= length($0); j++) {
                    d[i, j] = d[i - 1, j - 1] + (substr(given, i, 1) != substr($0, j, 1))
                    if (d[i - 1, j] + 1 < d[i, j]) d[i, j] = d[i - 1, j] + 1
                    if (d[i, j - 1] + 1 < d[i, j]) d[i, j] = d[i, j - 1] + 1
                }
            if (NR == 1 || d[length(given), length($0)] < least) {
                least = d[length(given), length($0)]
                name = $0
            }
        }
        END { printf "%s", name }' <<<"$variables"
}

# Prints the comments and variables at the top of the script, and ends it.
print_help() {
    local line more_line='^ +# *(.*)'
    while IFS= read -r line; do
        if [[ $line =~ $setting_line ]]; then
            printf '  %-44s %s\n' "${BASH_REMATCH[1]}=${BASH_REMATCH[2]}" "${BASH_REMATCH[4]}"
        elif [[ $line =~ $more_line ]]; then
            printf '  %-44s %s\n' '' "${BASH_REMATCH[1]}"
        elif [[ -z $line || $line == '# '* || $line == '#' ]]; then
            line=${line#'#'}
            printf '%s\n' "${line# }"
        fi
    done <<<"$settings"
    exit 0
}

# Sets `changed` to the variables that differ from their defaults. Sets `student_suffix` to those of them that change
# the student, with their values: the variables in the sections method, best checkpoint and training.
compare_with_defaults() {
    local line section= key default value
    changed=' ' student_suffix=
    while IFS= read -r line; do
        [[ $line != '# --- '* ]] || section=${line#'# --- '}
        [[ $line =~ $setting_line ]] || continue
        key=${BASH_REMATCH[1]} default=${BASH_REMATCH[2]}
        case $default in
            *'$collection'*) default=${default%%'$collection'*}$collection${default#*'$collection'} ;;
            '$default_python') default=$default_python ;;
        esac
        value=${!key}
        [[ $value != "$default" ]] || continue
        changed="$changed$key "
        case $section:$key in
            method*:distill_model_type) ;;
            method*:* | training*:* | best*:*)
                [[ $value != yes ]] || value=
                value=${value//[!A-Za-z0-9.,+-]/_}
                student_suffix=${student_suffix}_$key${value:0:40}
                ;;
        esac
    done <<<"$settings"
}

# Prints the variables, one a line, with a mark at those that differ from their defaults.
print_settings() {
    local key value mark
    echo "Settings (*: not the default)"
    for key in $variables; do
        value=${!key} mark=' '
        [[ $changed != *" $key "* ]] || mark='*'
        [[ $value != *[[:cntrl:]]* ]] || value=$(printf '%q' "$value")
        printf '%s %-30s %s\n' "$mark" "$key" "$value"
    done
}

# --- checks

# Ends the script with the exit status of a call that checked flags: 2 after a message, otherwise Python did not run it.
end_after_check() {
    [[ $1 == 2 ]] || echo "${0##*/}: python=$python cannot run the scripts; install the packages with 'make install'," \
        "or set python" >&2
    exit "$1"
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
            *_model | encoder) [[ -e ${!name}/config.json || -e ${!name}/bert_config.json || ${!name} =~ $hub_id ]] ;;
            *) [[ -r ${!name} ]] ;;
        esac || fail "$name=${!name} does not exist; $advice, or set $name"
    done
}

# Ends the script if num_processes or the old variable fp16 is wrong.
check_hardware() {
    [[ -z ${fp16:-} ]] || fail "fp16=$fp16 is an old name; set precision=auto, fp32, bf16 or fp16"
    [[ $num_processes =~ ^[1-9][0-9]{0,3}$ ]] || fail "num_processes=$num_processes is not a number from 1 to 9999"
}

# Sets `launch`: the start of a command that runs a script in num_processes processes. They share the CPU's cores.
set_launch() {
    local cores threads
    launch=("$python")
    [[ $num_processes != 1 ]] || return 0
    cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
    threads=${OMP_NUM_THREADS:-$((cores > num_processes ? cores / num_processes : 1))}
    launch=(env OMP_NUM_THREADS="$threads"
        "$python" -m torch.distributed.run --standalone --nproc_per_node "$num_processes")
}

# With setpriv, a command that `run` starts gets SIGTERM when this shell is killed.
until_killed=
if setpriv --pdeathsig TERM true 2>/dev/null; then until_killed="setpriv --pdeathsig TERM --"; fi

# Runs a command, and passes SIGHUP, SIGINT, SIGQUIT and SIGTERM on to it, as SIGTERM. It waits until the command has
# ended: distill.py saves a checkpoint first. If bash ran the command in the foreground, `kill` would end bash alone.
# The status is 75 if distill.py can resume (with one process), or else 128 + the signal's number. Functions cannot be commands here.
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
# is made only if it is missing; there is a warning if it was made from other pairs, and the pairs may be missing.
# Otherwise the file is beside the pairs, and it is made again unless it was made from these very pairs with these
# settings. Call: tokenize SET_NAME PAIRS MODEL [FEATURES_FILE]
tokenize() {
    local stem=${2%.gz} kind= unless=--if_stale
    [[ $do_lower_case == yes ]] || kind=.cased
    if [[ $1 == general ]]; then stem=${stem%.txt} kind=$kind.general; else stem=${stem%.tsv}; fi
    features=${4:-$stem.$max_seq_length$kind.features}
    if [[ -n ${4:-} ]]; then
        unless=--if_missing
        [[ ! -e $features || -r $2 ]] || return 0
    fi
    [[ -r $2 ]] || fail "${1/general/train}_pairs=$2 does not exist; make it first"
    run "$python" tokenize_to_features.py --set_name="$1" --raw_data_file="$2" --output_features_file="$features" \
        --bert_model_dir="$3" --max_seq_length="$max_seq_length" --do_lower_case="$do_lower_case" --overwrite "$unless"
}

# Prints number of queries, MRR and MRR@10 of a run, over the judged queries of the candidates. A query that the run
# lacks counts 0, with a warning. Call: measures QRELS RUN CANDIDATES
measures() {
    "$python" msmarco_mrr_eval.py --queries_of="$3" -- "$1" "$2" |
        LC_ALL=C awk '/^query_num/ {printf "  %7d", $2} /^MRR/ {printf "  %8.4f", $2}'
}

# --- the recipes in experiments/. They set `data`, `models` and `runs`.

# Prints what the recipe does next. Call: part WHAT
part() {
    printf '\n=== %s\n' "$*"
}

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
    if [[ ! -e $data/positives.scores.tsv ]]; then
        tokenize test "$2" "$models/teacher"
        run "$python" rerank.py --model_dir="$models/teacher" --features_file="$features" \
            --output_scores_file="$data/positives.scores.tsv" --device="$device" "${@:3}"
    fi
    prepare "$data/train_pairs.tsv.report.json" filter_positives --pairs_file="$1" \
        --scores_file="$data/positives.scores.tsv" --threshold="$threshold" --best="$best_positives" \
        --output_pairs_file="$data/train_pairs.tsv" --overwrite
}

# Makes pseudo_pairs.tsv, which a teacher learns from before its own pairs: pseudo-queries of a collection, each with its document
# and with pseudo_negatives of its candidates. A passage is a whole document, of which max_seq_length tokens are read; of several
# passages, the first one would stand out. No pseudo-query equals one of the queries. The reports are written last.
# Call: make_pseudo_pairs COLLECTION QUERIES
make_pseudo_pairs() {
    local pseudo=(--collection "$data/pseudo_corpus.jsonl" --queries "$data/pseudo_queries.tsv"
        --qrels "$data/pseudo_qrels.tsv") kind=(--kind title --remove_all_titles)
    [[ $pseudo_kind == title ]] || kind=(--kind "$pseudo_kind" --first_words 75) # what is read of a document
    prepare "$data/pseudo_queries.tsv.report.json" make_pseudo_queries --collection "$1" --not_in "$2" \
        "${kind[@]}" --num "$pseudo_queries" --output_collection_file "$data/pseudo_corpus.jsonl" \
        --output_queries_file "$data/pseudo_queries.tsv" --output_qrels_file "$data/pseudo_qrels.tsv" --overwrite
    prepare "$data/pseudo_top100" make_candidates "${pseudo[@]}" --output_run_file "$data/pseudo_top100"
    prepare "$data/pseudo_pairs.tsv.report.json" make_train_pairs "${pseudo[@]}" \
        --candidates "$data/pseudo_top100" --window 1000000 --stride 1000000 --num_negatives "$pseudo_negatives" \
        --output_pairs_file "$data/pseudo_pairs.tsv" --overwrite
}

# Makes general_3_384: random initial values, distilled from `pretrained` on plain text. Call: make_general_3_384 TEXT
make_general_3_384() {
    make "$models/scratch_3_384/config.json" "$python" model_tools/make_general_student.py --model_dir "$pretrained" \
        --num_layers 3 --hidden_size 384 --num_heads 12 --output_dir "$models/scratch_3_384"
    make "$models/general_3_384/config.json" env distill_model_type=intermediate set_name=general train_pairs="$1" \
        teacher_model="$pretrained" general_student_model="$models/scratch_3_384" \
        output_student_dir="$models/general_3_384" num_train_epochs=1 bash distill.sh
}

# Re-ranks with a student, and with the teacher if its run is missing. Call: rerank RUNS_DIR STUDENT VARIABLE=VALUE...
rerank() {
    local teacher=$models/teacher
    [[ ! -e $1/teacher.run ]] || teacher=
    make "$1/${2##*/}.run" env "${@:3}" runs_dir="$1" teacher_model="$teacher" student_model="$2" bash reranker.sh
}
