# What the recipes in experiments/ share. A recipe reads this file after common.sh: source experiments/recipes.sh
# Later it sets the variables data, models and runs.

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

# Writes variables to a file. If the file has other values, ends the script, because its outputs would not be made again.
# Call: keep_settings FILE VARIABLE...
keep_settings() {
    local key before now
    now=$(for key in "${@:2}"; do printf '%s=%s\n' "$key" "${!key}"; done)
    before=$now
    [[ ! -e $1 ]] || before=$(<"$1")
    [[ $before == "$now" ]] || {
        key=$(diff <(printf '%s\n' "$before") <(printf '%s\n' "$now") | sed -n 's/^< //p' | head -n 1) || :
        [[ -n $key ]] || fail "the files of $data and $models are of an earlier version of this recipe; set another" \
            "name, or remove both directories"
        fail "the files of $data and $models were made with other values of variables, such as $key; set these again," \
            "set another name, or remove both directories"
    }
    printf '%s\n' "$now" >"$1"
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

# Makes pseudo_pairs.tsv, which a teacher learns from before its own pairs: pseudo-queries of a collection, each with
# its document and with pseudo_negatives of its candidates. A passage is a whole document, of which max_seq_length
# tokens are read; of several passages, the first one would stand out. No pseudo-query equals one of the queries in the
# files. The reports are written last. Call: make_pseudo_pairs COLLECTION QUERIES...
make_pseudo_pairs() {
    local pseudo=(--collection "$data/pseudo_corpus.jsonl" --queries "$data/pseudo_queries.tsv"
        --qrels "$data/pseudo_qrels.tsv") kind=(--kind title --remove_all_titles) queries
    [[ $pseudo_kind == title ]] || kind=(--kind "$pseudo_kind" --first_words 75) # what is read of a document
    for queries in "${@:2}"; do kind+=(--not_in "$queries"); done
    prepare "$data/pseudo_queries.tsv.report.json" make_pseudo_queries --collection "$1" \
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
