"""Languages that a translation model's tokeniser has tokens for, and where a text's own goes."""

import dataclasses
import re
from collections.abc import Mapping

from transforms.text.added_tokens import Surroundings, beside, read_object
from transforms.text.vocabularies import TokenizerError

# As fairseq numbers them; transformers' tokenisers have the same lists.
_MBART = (
    "ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV my_MM ne_NP "
    "nl_XX ro_RO ru_RU si_LK tr_TR vi_VN zh_CN"
)
_MBART50_ALSO = (
    "af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL ps_AF pt_XX sv_SE sw_KE "
    "ta_IN te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI"
)
_M2M_100 = (
    "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr ht "
    "hu hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa pl ps "
    "pt ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu"
)
_WMT21 = "en ha is ja cs ru zh de"

_TOKENS = re.compile(r"__([a-z]{2,3})__|([a-z]{2}_[A-Z]{2})|([a-z]{3}_[A-Z][a-z]{3})")  # M2M-100, mBART, NLLB


@dataclasses.dataclass(frozen=True)
class Languages:
    """What a tokeniser has tokens for.

    Attributes:
      ids: by code, as users name it: "en", "en_XX" or "eng_Latn".
      after: a text's own language is told behind its end token, and not in front of the text.
    """

    ids: Mapping[str, int]
    after: bool


def code_of(piece: str) -> str | None:
    """The code of the language that a token stands for."""
    found = _TOKENS.fullmatch(piece)
    return found and next(filter(None, found.groups()))


def languages_of(pieces: list[str], path: str, surroundings: Surroundings) -> Languages | None:
    """The languages of a tokeniser, None where it knows no more than one.

    Args:
      pieces: its own.
      path: its file.
      surroundings: of the file.
    """
    ids = {code: i for i, piece in enumerate(pieces) if (code := code_of(piece))}
    if len(ids) < 2 or not _named(path, surroundings):
        return None
    after = _is_mbart25(path, surroundings) or bool(surroundings.config.get("legacy_behaviour"))
    return Languages(ids, after)


def tokens_of(path: str, surroundings: Surroundings) -> list[str]:
    """The tokens of the languages that a sentencepiece model beside fairseq's files is followed by, in order.

    Raises:
      TokenizerError: nothing says which.
    """
    name = _named(path, surroundings)
    if "m2m" in name and "nllb" not in name:
        codes = _WMT21 if surroundings.config.get("language_codes") == "wmt21" else _M2M_100
        return [f"__{code}__" for code in codes.split()]
    if "mbart" in name:
        return (_MBART if _is_mbart25(path, surroundings) else f"{_MBART} {_MBART50_ALSO}").split()
    if found := dict.fromkeys(text for text in surroundings.listed() if code_of(text)):  # two files may name them
        return list(found)
    raise TokenizerError("no file beside it says which languages it has; a tokenizer.json does")


def _named(path: str, surroundings: Surroundings) -> str:
    """Words that tell the kind of tokeniser: the name of its class, else the model's."""
    config = read_object(beside(path, "config.json"))
    names = [surroundings.config.get("tokenizer_class"), config.get("tokenizer_class"), config.get("model_type")]
    return next((name.lower() for name in names if isinstance(name, str) and re.search("nllb|mbart|m2m", name.lower())), "")


def _is_mbart25(path: str, surroundings: Surroundings) -> bool:
    return _named(path, surroundings).startswith("mbart") and "mbart50" not in _named(path, surroundings)
