"""`quiet index keys`, then `knn`: from a model folder to neighbours that know what it read."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from quietreasoning.backbone import BackboneConfig, load_backbone
from quietreasoning.capture import load_rows
from quietreasoning.cli.main import app
from quietreasoning.config import UserError
from quietreasoning.data.config import DataConfig
from quietreasoning.data.encoder import Encoder
from quietreasoning.data.tokenizers import load_tokenizer
from quietreasoning.indices.knn import source_of
from quietreasoning.memory.knn_decoding import score
from quietreasoning.memory.knn_lm import KNNLM, KNNSettings


def index(*words):
    done = CliRunner().invoke(app, ["index", *map(str, words), "--json", "-"])
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def half(found):
    return torch.full((len(found),), 0.5)


def test_a_model_folder_and_its_texts_become_an_index_that_knows_them(smollm3, sums, tmp_path):
    store, path = tmp_path / "store", tmp_path / "knn.index"
    made = index("keys", smollm3, f"path={sums}", "--dataset", "gsm8k", "--dtype", "float32", "--out", store)
    again = index("keys", smollm3, f"path={sums}", "--dataset", "gsm8k", "--dtype", "float32", "--out", store)
    assert made == again and made["rows_without_entry"] == 0 and made["entries"] > 10 * made["rows"]
    told = index(
        "knn", "--keys", store, "--values", store, "--output", path, "--dim", made["dim"], "--factory", "Flat"
    )
    assert told["entries"] == made["entries"]
    tokenizer = load_tokenizer(str(smollm3))
    backbone = load_backbone(BackboneConfig(path=str(smollm3), tune="frozen"), len(tokenizer)).eval()
    source = source_of(backbone, tokenizer)
    knn = KNNLM.open(path, source, half, settings=KNNSettings(temperature=1e-4, max_lookups=50))
    data = DataConfig(task="gsm8k", path=str(sums))
    rows, _ = load_rows(data, Encoder(tokenizer, context=256), "train", lambda: None)
    read = torch.from_numpy(rows[0].ids.astype(np.int64))
    log_p = score(backbone.model, knn, read, len(read) - 4)
    assert knn.counts.lookups == 4 and (log_p > np.log(0.5) - 1e-3).all()  # the nearest state is its own
    with pytest.raises(UserError, match="model_sha256"):
        KNNLM.open(path, replace(source, model_sha256="0" * 64), half)
