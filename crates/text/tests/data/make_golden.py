"""Writes the golden files of shoal-text's tests, with programs of other people's as the oracles.

    pip install transformers tokenizers sentencepiece gguf jinja2
    python make_golden.py

- templates.json: every template in templates/ over several conversations, by `transformers`.
- bpe.json: a small byte-level vocabulary trained by `tokenizers`, and the ids of many strings with
  each pre-tokenizer, built the way the models' own tokenizer.json files build it.
- spm.json: a small SentencePiece vocabulary and the ids of many strings, by `sentencepiece`.
"""

import datetime
import io
import json
import pathlib
import random

import sentencepiece
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2
from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX as QWEN35
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.utils import chat_template_utils

HERE = pathlib.Path(__file__).parent
NOW = datetime.datetime(2024, 2, 29, 12, 34, 56)

# ---- templates

BOS_EOS = {
    "smollm2": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>"),
    "llama31": ("<|begin_of_text|>", "<|eot_id|>"),
    "chatml": ("", "<|im_end|>"),
    "qwen25": ("", "<|im_end|>"),
    "qwen3": ("", "<|im_end|>"),
    "gemma": ("<bos>", "<eos>"),
    "phi3": ("<s>", "<|endoftext|>"),
    "deepseek": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
}


def message(role, content, name=None):
    return {"role": role, "content": content} | ({"name": name} if name else {})


CONVERSATIONS = [
    [message("user", "What is the capital of France?")],
    [message("system", "You are terse."), message("user", "Name three primary colors.")],
    [
        message("system", "  Mind the spaces. \n"),
        message("user", "  leading and trailing \n\n"),
        message("assistant", "\n\tYes. \n"),
        message("user", ""),
    ],
    [
        message("user", "Grüße, 世界! 😀👩‍👩‍👧 e\u0301 \u00a0\u3000"),
        message("assistant", "<think>\nhm\n</think>\n\n“Hello” — ça va?"),
        message("user", "Ещё раз: שלום"),
    ],
    [
        message("system", "Answer \"in\" <b>HTML</b> & 'JSON' {{ no }} {% raw %}"),
        message("user", "<script>alert('x')</script> \\n \\ {\"a\": [1, 2]} <|im_end|>", "Ann"),
        message("assistant", "It's \"fine\"\r\n\tok\u0007"),
        message("user", "Go on"),
        message("assistant", "No."),
    ],
    [message("user", "a"), message("user", "b")],
    [message("assistant", "I begin.")],
]


class FrozenNow(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def templates():
    chat_template_utils.datetime = FrozenNow
    cases = []
    for path in sorted((HERE / "templates").glob("*.jinja")):
        bos, eos = BOS_EOS.get(path.stem, ("<s>", "</s>"))
        tokens = {"bos_token": bos, "eos_token": eos}
        compiled = chat_template_utils._compile_jinja_template(path.read_text())
        for index, conversation in enumerate(CONVERSATIONS):
            for prompt in (False, True):
                case = {"template": path.stem, "bos": bos, "eos": eos, "conversation": index, "prompt": prompt}
                try:
                    case["text"] = compiled.render(
                        messages=conversation,
                        tools=None,
                        documents=None,
                        add_generation_prompt=prompt,
                        **{k: v for k, v in tokens.items() if v},
                    )
                except Exception as error:
                    case["refused"] = str(error)
                cases.append(case)
    now = int(NOW.replace(tzinfo=datetime.timezone.utc).timestamp())
    return {"now": now, "conversations": CONVERSATIONS, "cases": cases}


# ---- texts

WORDS = (
    "the quick brown fox It's we'll I'D don't they'VE def main(): return x+=1; for(int i=0;i<10;++i){\n\t} "
    "https://a.b/c?d=e 3.14159 1,000,000 12345 hello_world CamelCase HTTPServer naïve façade Straße "
    "日本語 世界 こんにちは 한국어 Ещё שלום مرحبا 😀 👩‍👩‍👧 ½² ٣٤ e\u0301 ſ's K"
).split(" ")
GAPS = [" ", "  ", "\n", "", " \n", "\n\n", "\t", "   ", "\r\n", "\u00a0", "\u3000"]
EDGES = [
    "", " ", "  ", "\n", " \n ", "a", "é", "e\u0301", "\u0301", "😀", "'s", " 's", "'S", "'ſ", "I'Mx", "x'll'd",
    "1", "12", "123", "1234", "12345678 9", " 1234", "½²³", "٣٤٥٦", "a1b22c333", "    x", "x    ", "\t\tx\n\n\ny",
    "a\n \n  b", "…—“”", "!!!???", " !?\n\n", "//\n/", "foo/bar/\n", "$+<=>^~|`", "ＡＢ１２　。", "日本語と漢字ひらがなカタカナ",
    "중국어 한국어", "\u200b\u200d\ufeff", "\u0000\u0007", "ÀÉÎõü ÀÉ", "ABCdefGHI", "AbcDEF's", "HTML's", "ǅ", "ªº",
    "﷽", "\u2028x\u2029", "\u0085", "ȷ𝒜𝟙", "<|im_start|>user\n<|im_end|>", "IMGIMGABCZ", "<sentinel:12>",
]


def texts(count, seed):
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        made.append("".join(draw.choice(WORDS) + draw.choice(GAPS) for _ in range(draw.randint(1, 8))))
    return EDGES + made


# ---- byte-level BPE

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
DIGITS = pre_tokenizers.Digits(individual_digits=True)


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


# Where Transformers knows the pattern it is taken from there; GPT-2's and the digits are built in to
# `tokenizers`. What remains is quoted from the models' tokenizer.json.
O200K = GGUF_PRE_TOKENIZER_SPLITS["gpt-4o"]
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
KIMI_UPPER, KIMI_LOWER = (
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]",
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]",
)
PRE_TOKENIZERS = {
    "default": [split(r"[\p{P}\$\+<=>\^~\|]+"), split(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"),
                split(r"\p{N}+"), split("[0-9][0-9][0-9]"), BYTES],
    "gpt-2": [GPT2],
    "mpt": ["nfc", GPT2],
    "smollm": [DIGITS, GPT2],
    "command-r": ["nfc", DIGITS, GPT2],
    "llama-bpe": [split(GGUF_PRE_TOKENIZER_SPLITS["llama-bpe"]), BYTES],
    "dbrx": [split(GGUF_PRE_TOKENIZER_SPLITS["dbrx"]), BYTES],
    "qwen2": ["nfc", split(QWEN2), BYTES],
    "stablelm2": [split(QWEN2), BYTES],
    "qwen35": ["nfc", split(QWEN35), BYTES],
    "gpt-4o": [split(O200K), BYTES],
    "tekken": [split(GGUF_PRE_TOKENIZER_SPLITS["tekken"]), BYTES],
    "deepseek-coder": [split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split("[一-龥ࠀ-一가-퟿]+"), DIGITS, BYTES],
    "deepseek-v3": [
        split(r"\p{N}{1,3}"), split("[一-龥\u3040-ゟ゠-ヿ]+"),
        split(r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|""" + TAIL),
        BYTES,
    ],
    "kimi-k2": [
        split(r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?" + KIMI_UPPER + "*" + KIMI_LOWER + "+" + CONTRACTIONS + "?|"
              r"[^\r\n\p{L}\p{N}]?" + KIMI_UPPER + "+" + KIMI_LOWER + "*" + CONTRACTIONS + r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + TAIL),
        BYTES,
    ],
    "bloom": [split(r" ?[^(\s|[.,!?…。，、।۔،])]+"), BYTES],
    "viking": [split(r" ?[^(\s|[.,!?…。，、।۔،])]+"), DIGITS, BYTES],
    "bailingmoe": [
        split(r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"), BYTES
    ],
    "seed-coder": [split(CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|" + TAIL), BYTES],
}
WHOLE_WORDS = {"llama-bpe", "tekken"}


def bpe():
    # Trained on whole lines, so that merges reach over words, and every wrong cut shows in the ids.
    corpus = [text for text in texts(600, 1)] + [" ".join(WORDS)] * 5
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = BYTES
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = [token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    merges = [tuple(pair) for pair in model["merges"]]
    strings = texts(40, 2)
    ids = {}
    for name, steps in PRE_TOKENIZERS.items():
        oracle = Tokenizer(models.BPE(vocab=model["vocab"], merges=merges, ignore_merges=name in WHOLE_WORDS))
        if steps[0] == "nfc":
            oracle.normalizer = normalizers.NFC()
        oracle.pre_tokenizer = pre_tokenizers.Sequence([step for step in steps if step != "nfc"])
        ids[name] = [oracle.encode(text).ids for text in strings]
    return {"tokens": tokens, "merges": [" ".join(pair) for pair in merges], "strings": strings, "ids": ids}


# ---- SentencePiece

SPM_STRINGS_UNSAFE = {"", "\u0000\u0007"}  # no text at all, and NUL, which SentencePiece's own trainer reserves


def spm():
    corpus = [line for text in texts(600, 3) for line in text.splitlines() if line]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_writer=model,
        model_type="bpe",
        vocab_size=800,
        character_coverage=0.99,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        control_symbols=["<|im_start|>", "<|im_end|>"],
        user_defined_symbols=["<tool>"],
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    tokens, scores, types = [], [], []
    for id in range(processor.vocab_size()):
        tokens.append(processor.id_to_piece(id))
        scores.append(processor.get_score(id))
        user_defined = tokens[-1] == "<tool>"
        types.append(
            2 if processor.is_unknown(id) else 3 if processor.is_control(id) else 6 if processor.is_byte(id)
            else 4 if user_defined else 1
        )
    strings = [text for text in texts(80, 4) if text not in SPM_STRINGS_UNSAFE]
    return {
        "tokens": tokens,
        "scores": scores,
        "types": types,
        "strings": strings,
        "ids": [processor.encode(text) for text in strings],
    }


for name, make in {"templates": templates, "bpe": bpe, "spm": spm}.items():
    text = json.dumps(make(), ensure_ascii=False, separators=(",", ":"))
    (HERE / f"{name}.json").write_text(text + "\n")
    print(name, len(text))
