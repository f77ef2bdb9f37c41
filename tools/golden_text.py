#!/usr/bin/env python3
"""Makes the goldens of text/ (tests/golden/text_*.json) with PyPI's tokenizers and transformers.

    python3 -m venv .venv && .venv/bin/pip install tokenizers transformers gguf
    .venv/bin/python tools/golden_text.py [--model SmolLM2-135M-Instruct.Q4_1.gguf] [--train]

The goldens are committed; ctest needs neither Python nor these packages. --train also remakes the small tokenizer.json files that the goldens
are made for. Without --model the goldens of the default model are left alone.
"""

import argparse
import datetime
import json
import pathlib

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"

CORPUS = [
    "",
    " ",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog. It's 5 o'clock, and they'll say \"we've won\"; I'D RATHER NOT.",
    "Don't, DON'T, don\u2019t, we'Ll, I'M, you'RE",
    # languages and scripts
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u8bf7\u7528\u4e2d\u6587\u89e3\u91ca\u4e00\u4e0b\u201c\u9884\u586b\u5145\u201d\u548c\u201c\u89e3\u7801\u201d\u7684\u533a\u522b\u3002",
    "\u3053\u3093\u306b\u3061\u306f\u3001\u4e16\u754c\u3002\u30ab\u30bf\u30ab\u30ca\u3068\u6f22\u5b57\u304c\u6df7\u3056\u308b\u6587\u3067\u3059\u3002",
    "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4! \ud55c\uad6d\uc5b4 \ubb38\uc7a5\uc785\ub2c8\ub2e4.",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u0421\u044a\u0435\u0448\u044c \u0435\u0449\u0451 \u044d\u0442\u0438\u0445 \u043c\u044f\u0433\u043a\u0438\u0445 \u0444\u0440\u0430\u043d\u0446\u0443\u0437\u0441\u043a\u0438\u0445 \u0431\u0443\u043b\u043e\u043a.",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645\u060c \u0647\u0630\u0627 \u0646\u0635\u0651 \u0639\u0631\u0628\u064a\u0651 \u0661\u0662\u0663.",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e \u0967\u0968\u0969",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01",
    "\u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5 \u039a\u03cc\u03c3\u03bc\u03b5, \u00e7a va tr\u00e8s bien, stra\u00dfe, na\u00efve caf\u00e9, \u0130stanbul, \u0141\u00f3d\u017a, \u1ea4n \u0111\u1ed9ng",
    "e\u0301 \u00e9 a\u030a\u0323 \u1112\u1161\u11ab \u212b \ufb01 \u2460 \uff21",  # composed and decomposed, compatibility forms
    # emoji: ZWJ sequences, skin tones, flags, keycaps, variation selectors
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f44d\U0001f3fd \U0001f1e8\U0001f1f3\U0001f1eb\U0001f1f7 1\ufe0f\u20e3 \u2764\ufe0f\u200d\U0001f525 \U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    "text\U0001f642text\U0001f642\U0001f642 \U0001f9d1\u200d\U0001f4bbcodes",
    # code
    "def f(x: int) -> str:\n    \"\"\"Doc.\"\"\"\n    return f\"{x:>08,.2f}\" if x != 0 else 'none'\n\n\nclass A:\n\tpass\n",
    "#include <vector>\nint main() { std::vector<int> v{1,2,3}; for (auto&& x : v) x <<= 1; return v[0] & 0xFF; }\r\n",
    "SELECT * FROM t WHERE a>=10 AND b!='x'; -- comment\n{\"k\": [1, 2.5e-3, null, true]}\n<a href=\"https://example.org/?q=1&r=%20\">x</a>",
    "if (a&&b||!c) { d ^= ~e; } // === !== => -> :: ... $x @y #z `w` \\n \\\\",
    # whitespace
    "a  b   c    d     e                    f",
    "  leading and trailing  ",
    "\n\n\n", "\t\tx\t y \t\n \n  \n", "a\r\nb\rc\n\n  d\n   \n\n e ",
    "no-break\u00a0space, thin\u2009space, ideographic\u3000space, zero\u200bwidth, line\u2028separator, \ufeffBOM, next\u0085line, \u180e",
    "x \u00a0 \u00a0y  \n \u3000z",
    # digits
    "0 1 12 123 1234 12345 1234567890 3.14159 1,000,000 1e-9 0x1F 2024-06-11T12:00:00Z",
    "\u0661\u0662\u0663\u0664 \u0967\u0968\u0969\u096a \uff11\uff12\uff13\uff14 \u00bd \u00b2\u2075 \u216b \u4e00\u4e8c\u4e09 x2y3z4 7th 1st",
    "99 bottles, 100% sure, $5.00, \u20ac20, #1, no.2, v1.2.3-rc.4+build.5",
    # long words and repeats
    "a" * 500, "ab" * 300, "\u4e2d" * 200, "!" * 100, " " * 100, "\n" * 50, "7" * 100,
    "pneumonoultramicroscopicsilicovolcanoconiosis" * 5,
    "\U0001f600" * 40,
    # control characters and oddities
    "nul \x00 bell \x07 esc \x1b[31m del \x7f",
    "private \ue000 unassigned \u0378 noncharacter \ufffe last \U0010ffff replacement \ufffd",
    "\u202eright-to-left override\u202c soft\u00adhyphen",
    # special tokens, whole and broken
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "x<|im_end|>y <|im_end|> z<|endoftext|><|im_end", "<|im_start|><|im_start|>", "<|IM_START|> < |im_start|>",
    "<|begin_of_text|>hi<|eot_id|> <s>a</s> <unk> <tool_call>{}</tool_call>",
    "\u2581\u2581under\u2581score \u0120\u010a looks like the byte alphabet",
    "<0x0A> <0xff> [INST] <<SYS>>",
]

SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
NOW = datetime.datetime(2026, 3, 9, 14, 5, 6, tzinfo=datetime.timezone.utc)


def write(name, value):
    path = GOLDEN / name
    # One case a line, so that a change reads well.
    def lines(v, depth):
        if depth > 0 and isinstance(v, (dict, list)) and v and isinstance(next(iter(v.values() if isinstance(v, dict) else v)), (dict, list, str)):
            if isinstance(v, dict):
                return "{\n" + ",\n".join(json.dumps(k) + ":" + lines(x, depth - 1) for k, x in v.items()) + "\n}"
            return "[\n" + ",\n".join(lines(x, depth - 1) for x in v) + "\n]"
        return json.dumps(v, separators=(",", ":"))
    path.write_text("{\n" + ",\n".join(json.dumps(k) + ":" + lines(x, 2) for k, x in value.items()) + "\n}\n")
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")


# ---- tokenizers

def split_then_bytes(number):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT % number), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])


def training_text():
    # Real prose and code that every Python carries, so that words merge as in a real vocabulary.
    return CORPUS * 3 + pathlib.Path(argparse.__file__).read_text().splitlines()[:1500]


def train_byte_level(pre, normalizer, special, plain, vocab_size):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre
    if normalizer is not None:
        tok.normalizer = normalizer
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    tok.train_from_iterator(training_text(), trainer)
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in special])
    tok.add_tokens([AddedToken(s, special=False, normalized=False) for s in plain])
    return tok


def train_qwen2_like():
    return train_byte_level(split_then_bytes(r"\p{N}"), normalizers.NFC(), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
                            ["<tool_call>", "</tool_call>"], 1500)


def train_llama3_like():
    tok = train_byte_level(split_then_bytes(r"\p{N}{1,3}"), None, ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"], [], 1500)
    spec = json.loads(tok.to_str())
    spec["model"]["ignore_merges"] = True
    tok = Tokenizer.from_str(json.dumps(spec))
    tok.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|> $B:1",
        special_tokens=[("<|begin_of_text|>", tok.token_to_id("<|begin_of_text|>"))])
    return tok


def train_spm_like():
    """As converters write a SentencePiece BPE model: spaces are U+2581, what the vocabulary lacks falls back to bytes."""
    byte_tokens = [f"<0x{b:02X}>" for b in range(256)]
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tok.pre_tokenizer = pre_tokenizers.Split("\u2581", behavior="merged_with_next")  # for training only
    trainer = trainers.BpeTrainer(vocab_size=1200, limit_alphabet=120, special_tokens=["<unk>", "<s>", "</s>"] + byte_tokens, show_progress=False)
    tok.train_from_iterator(training_text(), trainer)
    spec = json.loads(tok.to_str())
    spec["pre_tokenizer"] = None
    spec["added_tokens"] = [t for t in spec["added_tokens"] if not t["content"].startswith("<0x")]
    tok = Tokenizer.from_str(json.dumps(spec))
    tok.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", tok.token_to_id("<s>"))])
    return tok


def smollm2(path):
    """The tokenizer that SmolLM2 publishes, from the vocabulary in the GGUF file: digits alone, then GPT-2's splitting."""
    from gguf import GGUFReader
    fields = GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, kind in zip(tokens, types) if kind == 3])
    # Ids that others publish for this model: a check on the recipe itself.
    for text, ids in {"Hello world! 123": [19556, 905, 17, 216, 33, 34, 35], "  multiple   spaces": [216, 2701, 256, 5600],
                      "Caf\u00e9 d\u00e9j\u00e0 vu.": [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
                      "The capital of France is": [504, 3575, 282, 4649, 314]}.items():
        assert tok.encode(text).ids == ids, (text, tok.encode(text).ids)
    return tok, fields["tokenizer.chat_template"].contents()


def tokenizer_golden(tok):
    cases = []
    for text in CORPUS:
        ids = tok.encode(text, add_special_tokens=False).ids
        cases.append({
            "text": text,
            "ids": ids,
            "with_special": tok.encode(text, add_special_tokens=True).ids,
            "decoded": tok.decode(ids, skip_special_tokens=False),
            "decoded_skipping": tok.decode(ids, skip_special_tokens=True),
        })
    specials = sorted(i for i, t in tok.get_added_tokens_decoder().items() if t.special)
    return {"vocab_size": max(tok.get_vocab(with_added_tokens=True).values()) + 1, "special": specials, "cases": cases}


# ---- chat templates

WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "The weather \u2014 \"now\" <&>", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "description": "e.g. \u6771\u4eac"}, "days": {"type": "integer", "default": 1}},
    "required": ["city"], "additionalProperties": False}}}
TIME = {"type": "function", "function": {"name": "get_time", "description": "", "parameters": {"type": "object", "properties": {}}, "return": None}}


def call(name, arguments, id="abcdef123"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


CONVERSATIONS = {
    "one user": [{"role": "user", "content": "hello"}],
    "system first": [{"role": "system", "content": "  Be brief. "}, {"role": "user", "content": "\u4f60\u597d \U0001f600\n\nline"}],
    "many turns": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": " 2 "}, {"role": "user", "content": "sure?"},
                   {"role": "assistant", "content": "yes"}, {"role": "user", "content": ""}],
    "thoughts": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>\nhmm\n</think>\n\nanswer"}, {"role": "user", "content": "again"},
                 {"role": "assistant", "content": "<think>\nmore\n</think>\n\nend"}],
    "reasoning field": [{"role": "user", "content": "q"}, {"role": "assistant", "reasoning_content": "\nbecause\n", "content": "a"}],
    "tool round trip": [{"role": "user", "content": "weather?"},
                        {"role": "assistant", "content": None, "tool_calls": [call("get_weather", {"city": "\u6771\u4eac", "days": 2, "f": 1.0, "x": None, "y": [True, {}]})]},
                        {"role": "tool", "tool_call_id": "abcdef123", "content": "{\"t\": 21.5}"}, {"role": "assistant", "content": "21.5 degrees"}],
    "two calls": [{"role": "system", "content": "S"}, {"role": "user", "content": "both"},
                  {"role": "assistant", "content": "Let me look.", "tool_calls": [call("get_weather", {"city": "A"}), call("get_time", {}, "123456789")]},
                  {"role": "tool", "tool_call_id": "abcdef123", "content": "sun"}, {"role": "tool", "tool_call_id": "123456789", "content": "noon"}],
    "arguments as text": [{"role": "user", "content": "u"}, {"role": "assistant", "content": None, "tool_calls": [call("get_time", "{\"tz\":\"UTC\"}", "bad")]},
                          {"role": "tool", "tool_call_id": "bad", "content": "t"}],
    "content parts": [{"role": "user", "content": [{"type": "text", "text": "part one"}, {"type": "image"}, " part two"]}],
    "roles out of turn": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    "odd role": [{"role": "narrator", "content": "once"}],
    "empty": [],
}
KWARGS = [{}, {"enable_thinking": False, "date_string": "1 May 2025", "tools_in_user_message": False}]


def render(template, messages, tools, kwargs, add_generation_prompt):
    from transformers.utils import chat_template_utils
    from unittest import mock
    clock = mock.Mock(wraps=datetime.datetime)
    clock.now.return_value = NOW
    with mock.patch.object(chat_template_utils, "datetime", clock):
        text, _ = chat_template_utils.render_jinja_template([messages], tools=tools, chat_template=template,
                                                            add_generation_prompt=add_generation_prompt, **kwargs)
    return text[0]


def template_golden(templates):
    # Messages and tools as text: a client's JSON reaches the template byte for byte.
    return {"now_unix_s": int(NOW.timestamp()), "conversations": {k: json.dumps(v, ensure_ascii=False) for k, v in CONVERSATIONS.items()},
            "tools": json.dumps([WEATHER, TIME], ensure_ascii=False), "templates": {k: template_cases(v) for k, v in templates.items()}}


def template_cases(template):
    import jinja2
    cases = []
    for name, messages in CONVERSATIONS.items():
        for tools in (None, [WEATHER, TIME]):
            for kwargs in KWARGS:
                for generate in (False, True):
                    if kwargs and not generate:
                        continue
                    case = {"name": name, "tools": tools is not None, "kwargs": json.dumps(kwargs) if kwargs else "", "add_generation_prompt": generate}
                    try:
                        case["text"] = render(template, messages, tools, {"bos_token": "<bos>", "eos_token": "<eos>", **kwargs}, generate)
                    except jinja2.exceptions.UndefinedError:
                        case["fails"] = ""  # the wording is Jinja2's own
                    except jinja2.exceptions.TemplateError as e:
                        case["fails"] = str(e)
                    except TypeError:
                        case["fails"] = ""
                    cases.append(case)
    return cases


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="the default model's GGUF file")
    parser.add_argument("--train", action="store_true", help="remake tokenizer_*.json")
    options = parser.parse_args()
    for name, train in {"qwen2_like": train_qwen2_like, "llama3_like": train_llama3_like, "spm_like": train_spm_like}.items():
        path = GOLDEN / f"tokenizer_{name}.json"
        if options.train:
            path.write_text(json.dumps(json.loads(train().to_str()), ensure_ascii=False, separators=(",", ":")) + "\n")
        write(f"text_tokenizer_{name}.json", tokenizer_golden(Tokenizer.from_file(str(path))))
    write("text_templates.json", template_golden({path.stem: path.read_text() for path in sorted((GOLDEN / "templates").glob("*.jinja"))}))
    if options.model:
        tok, template = smollm2(options.model)
        write("text_tokenizer_smollm2.json", tokenizer_golden(tok))
        write("text_template_smollm2.json", template_golden({"smollm2": template}))


if __name__ == "__main__":
    main()
