#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# See a network learn to register: makes labelled 3D shapes, trains on them for about three minutes on two processor
# cores, evaluates on subjects it has not seen, registers one pair, and ends with a table and a page with pictures.
# Everything it makes lies in the folder demo, which a second call replaces.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

output=$PWD/demo
options=(--dataset_dir "$output/data" --ckpt_path "$output/model.pt" --overwrite true)
mkdir -p "$output"
export PYTHONWARNINGS=ignore
# Shows the bars and the results, not what MONAI says about its options.
run() {
  local task=$1 config=$2
  shift 2
  python -m monai.bundle run "$task" --config_file "configs/$config.json" --logging_file "$output/quiet.conf" \
    --output_dir "$output/$task" "${options[@]}" "$@" | sed '/ - INFO - /d; /^$/d'
}
sed 's/^level=INFO/level=WARNING/' bundles/eoir_shapes3d/configs/logging.conf > "$output/quiet.conf"

cd bundles/eoir_shapes3d
echo "1/4  Labelled shapes"
python -m common.data.shapes3d --output_dir "$output/data"
echo "2/4  Training EOIR (about three minutes on two cores)"
run train train
echo "3/4  Registering one pair that the training has not seen"
images=$output/data/imagesTr
run infer inference --moving "$images/SHAPES_0021_0000.nii.gz" --fixed "$images/SHAPES_0022_0000.nii.gz"
echo "     Warped image and displacement field: $output/infer"
echo "4/4  Evaluation on all pairs of the held-out subjects"
run evaluate evaluate --history "$output/train/history.csv"
