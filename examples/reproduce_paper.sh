#!/usr/bin/env bash
# The rows of the paper's main tables: five projections on three backbones, trained, evaluated and compared.
#
#     examples/reproduce_paper.sh --list                  what every row needs, and how to get it
#     examples/reproduce_paper.sh --check l14 searle      is it there, and does it fit? exit code 1 if not
#     examples/reproduce_paper.sh --estimate l14          memory and time of every row with ViT-L/14, without any of it
#     examples/reproduce_paper.sh l14 searle              check, train, evaluate, compare
#
# Backbones: b32, l14, g14. Projections: pic2word, searle, lincir, context_i2w, fti4cir. Without names: all of them.
# Where things are, by environment variables:
#     PROJECTIONS  folder of converted projections (projections)    TRIPLETS  text triplets (triplets.jsonl)
#     BENCHMARKS   folder with fashioniq, genecis, cirr, circo, coco; those that are missing are left out (data)
#     OUTPUT       folder for the results (outputs/reproduce)       CLIP      folder of the CLIP in place of its Hub id
#     LICENSE      licence of the result, for its card              PYTHON    the interpreter (python)
#     LAUNCH       what starts a training (`python`; for several GPUs `accelerate launch --config_file ...`)
#     TRAIN_OPTIONS, EVALUATE_OPTIONS, ESTIMATE_OPTIONS             further arguments of train_rtd.py and evaluate_cir.py
# The published figures of CIRR and CIRCO are of their test splits, which only their servers score: SUBMISSION=1 writes
# the files for them.
set -euo pipefail

examples=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python}
read -r -a launch <<<"${LAUNCH:-$python}"
read -r -a train_options <<<"${TRAIN_OPTIONS:-}"
read -r -a evaluate_options <<<"${EVALUATE_OPTIONS:-}"
read -r -a estimate_options <<<"${ESTIMATE_OPTIONS:-}"

usage() {
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
}

reproduction() { # command, row and options of utils/reproduction.py
    PYTHONPATH="$examples:$(dirname "$examples")${PYTHONPATH:+:$PYTHONPATH}" "$python" -m utils.reproduction "$@"
}

train() { # backbone projection
    local config folder triplets clip output
    config=$(reproduction value "$1" "$2" --name recipe)
    folder=$(reproduction value "$1" "$2" --name projection_folder)
    triplets=$(reproduction value "$1" "$2" --name triplets)
    clip=$(reproduction value "$1" "$2" --name clip_model)
    output=$(reproduction value "$1" "$2" --name output_dir)
    "${launch[@]}" "$examples/train_rtd.py" --config "$config" --projection "$folder" --triplets "$triplets" \
        --clip_model "$clip" --output_dir "$output/encoder" --license "${LICENSE:?state the licence of the result}" \
        ${train_options[@]+"${train_options[@]}"}
}

evaluate() { # backbone projection
    local folder clip output kind found=() submission=()
    folder=$(reproduction value "$1" "$2" --name projection_folder)
    clip=$(reproduction value "$1" "$2" --name clip_model)
    output=$(reproduction value "$1" "$2" --name output_dir)
    kind=$(reproduction value "$1" "$2" --name template)
    mapfile -t found < <(reproduction present "$1" "$2")
    [ -z "${SUBMISSION:-}" ] || submission=(--submission)
    "$python" "$examples/evaluate_cir.py" --clip_model "$clip" --projection "$folder" \
        ${kind:+--prompt_template "$kind"} --text_encoder "$output/encoder" --baseline_encoder frozen \
        --benchmarks "${found[@]}" --output_dir "$output/evaluation" ${submission[@]+"${submission[@]}"} \
        ${evaluate_options[@]+"${evaluate_options[@]}"}
}

action=run
case ${1:-} in
    --list | --check | --estimate)
        action=${1#--}
        shift
        ;;
    -h | --help)
        usage
        exit 0
        ;;
    -*)
        echo "Unknown option $1. There are --list, --check, --estimate and --help." >&2
        exit 2
        ;;
esac
[ $# -le 2 ] || { usage >&2; exit 2; }

rows=$(reproduction rows "$@")
outcome=0
while read -r backbone projection; do
    case $action in
        list)
            reproduction list "$backbone" "$projection"
            ;;
        check)
            reproduction list "$backbone" "$projection"
            reproduction check "$backbone" "$projection" || outcome=1
            ;;
        estimate)
            echo "=== $backbone $projection"
            "$python" "$examples/train_rtd.py" --config "$examples/recipes/reproduce_${backbone}_$projection.yaml" \
                --estimate ${estimate_options[@]+"${estimate_options[@]}"} </dev/null
            ;;
        run)
            echo "=== $backbone $projection"
            if ! reproduction check "$backbone" "$projection"; then
                echo "Left out. \`examples/reproduce_paper.sh --list $backbone $projection\` says how to get it." >&2
                outcome=1
                continue
            fi
            train "$backbone" "$projection" </dev/null
            evaluate "$backbone" "$projection" </dev/null
            reproduction compare "$backbone" "$projection"
            ;;
    esac
    echo
done <<<"$rows"
exit "$outcome"
