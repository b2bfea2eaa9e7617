#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# See a network register: makes labelled shapes, registers a pair of them with the network that comes with the bundle,
# evaluates on all pairs that its training has not seen, and ends with a table and a page with pictures.
#   bash scripts/demo.sh                        EOIR on volumes (eoir_shapes3d)
#   bash scripts/demo.sh nephi_shapes2d         NePhi on triangles and circles, then optimised on each pair
#   bash scripts/demo.sh eoir_shapes3d train    see it learn first, for a few minutes on two processor cores
# Everything it makes lies in the folder demo, which a second call replaces; what comes with the bundle stays as it is.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
bundle=${1:-eoir_shapes3d}
case $bundle in
  eoir_shapes3d) moving=SHAPES_0021_0000.nii.gz fixed=SHAPES_0022_0000.nii.gz on_each_pair= ;;
  nephi_shapes2d) moving=SHAPES_0206_0000.nii.gz fixed=SHAPES_0207_0000.nii.gz on_each_pair="--io_steps 50" ;;
  *) echo "ERROR: There is no demonstration $bundle; give eoir_shapes3d or nephi_shapes2d." >&2; exit 1 ;;
esac
case ${2:-} in
  "" | train) training=${2:-} ;;
  *) echo "ERROR: $2 is no part of a demonstration; give train to see the network learn, or nothing." >&2; exit 1 ;;
esac
source scripts/environment.sh

output=$PWD/demo/$bundle
options=(--dataset_dir "$output/data" --overwrite true)
if [ -n "$training" ]; then options+=(--ckpt_path "$output/model.pt"); fi
mkdir -p "$output"
export PYTHONWARNINGS=ignore
# Shows the bars and the results, not what MONAI says about its options.
run() {
  local task=$1 config=$2
  shift 2
  python -m monai.bundle run "$task" --config_file "configs/$config.json" --logging_file "$output/quiet.conf" \
    --output_dir "$output/$task" "${options[@]}" "$@" | sed '/ - INFO - /d; /^$/d'
}
cd "bundles/$bundle"
sed 's/^level=INFO/level=WARNING/' configs/logging.conf > "$output/quiet.conf"

echo "Labelled shapes"
python -m "common.data.${bundle#*_}" --output_dir "$output/data"
if [ -n "$training" ]; then
  echo "Training ${bundle%_*} (a few minutes on two cores)"
  run train train
fi
echo "Registering one pair that the training has not seen"
run infer inference --moving "$output/data/imagesTr/$moving" --fixed "$output/data/imagesTr/$fixed" \
  $on_each_pair
echo "Warped image and displacement field: $output/infer"
echo "Evaluation on all pairs of the held-out shapes"
run evaluate evaluate ${training:+--history "$output/train/history.csv"} $on_each_pair
