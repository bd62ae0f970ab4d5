"""A SentencePiece `.model` as a Hugging Face fast tokenizer with the same ids and text.

The conversion is checked against the sentencepiece library on probe texts when it is loaded; a
model that would be read differently is refused, never approximated.
"""

from __future__ import annotations

from pathlib import Path

from google.protobuf.message import DecodeError
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from quietreasoning.config import UserError

UNIGRAM, BPE = 1, 2  # trainer_spec.model_type
CONTROL, USER_DEFINED = 3, 4  # piece.type
SPACE = "▁"
PROBES = (
    "The sum of 1,234 and 56.7 is 1290.7.",
    "a > b , c > a ? a 2",
    "  two  spaces, a\ttab\nand a newline ",
    "Zoë paid €12½ for naïve ﬁsh 鱼 🙂.",
    "x*(y+3)=18>>18 ####",
)


def from_sentencepiece(path: str) -> PreTrainedTokenizerFast:
    """UserError where the file is no SentencePiece model, or cannot be carried over exactly."""
    model = _parse(path)
    if model.trainer_spec.model_type not in (UNIGRAM, BPE):
        raise UserError(
            f"tokenizer.path={path}: only SentencePiece models of type unigram or bpe can be used"
        )
    if model.trainer_spec.eos_id < 0:
        raise UserError(f"tokenizer.path={path} has no end of sequence; train it again with --eos_id=2")
    tokenizer = Tokenizer(_model(model))
    tokenizer.normalizer = _normalizer(model)
    tokenizer.decoder = _decoder(model)
    tokenizer.add_tokens(
        [
            AddedToken(piece.piece, normalized=False, special=piece.type == CONTROL)
            for piece in model.pieces
            if piece.type in (CONTROL, USER_DEFINED)
        ]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **_special(model)
    )
    _check_same(wrapped, path)
    return wrapped


def _parse(path: str) -> ModelProto:
    try:
        model = ModelProto.FromString(Path(path).read_bytes())
    except FileNotFoundError:
        raise UserError(f"tokenizer.path: {Path(path).resolve()} does not exist") from None
    except (OSError, DecodeError):
        raise UserError(f"tokenizer.path={path} is no SentencePiece model") from None
    if not model.pieces:
        raise UserError(f"tokenizer.path={path} is no SentencePiece model: it holds no pieces")
    return model


def _model(model: ModelProto) -> models.Model:
    fallback = model.trainer_spec.byte_fallback
    if model.trainer_spec.model_type == UNIGRAM:
        scored = [(piece.piece, piece.score) for piece in model.pieces]
        return models.Unigram(scored, unk_id=model.trainer_spec.unk_id, byte_fallback=fallback)
    ids = {piece.piece: i for i, piece in enumerate(model.pieces)}
    # a merge is as good as the score of what it makes; the library tries the best score first
    ranked = sorted(enumerate(model.pieces), key=lambda entry: (-entry[1].score, entry[0]))
    merges = [
        (piece.piece[:cut], piece.piece[cut:])
        for _, piece in ranked
        for cut in range(1, len(piece.piece))
        if piece.type not in (CONTROL, USER_DEFINED) and piece.piece[:cut] in ids and piece.piece[cut:] in ids
    ]
    unknown = model.pieces[model.trainer_spec.unk_id].piece
    return models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=fallback)


def _normalizer(model: ModelProto) -> normalizers.Normalizer:
    spec = model.normalizer_spec
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(" +$|^ +"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    return normalizers.Sequence(steps)


def _decoder(model: ModelProto) -> decoders.Decoder:
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.normalizer_spec.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)


def _special(model: ModelProto) -> dict[str, str]:
    spec = model.trainer_spec
    ids = {
        "unk_token": spec.unk_id,
        "bos_token": spec.bos_id,
        "eos_token": spec.eos_id,
        "pad_token": spec.pad_id,
    }
    return {name: model.pieces[i].piece for name, i in ids.items() if i >= 0}


def _check_same(tokenizer: PreTrainedTokenizerFast, path: str) -> None:
    reference = SentencePieceProcessor(model_file=path)
    for probe in PROBES:
        if tokenizer(probe, add_special_tokens=False).input_ids != reference.encode(probe):
            raise UserError(
                f"tokenizer.path={path} cannot be converted exactly (it reads {probe!r} differently); "
                "save the model as a Hugging Face folder with a tokenizer.json"
            )
