"""Conversations: what a record may be, the prompt of known templates, and what is cut of a long one."""

import datetime
import json
import time

import pytest
import tokenizers

from tests.support import tiny_gguf
from transforms import chat
from transforms.chat import ChatError, ChatTemplate

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are "
    "helpful<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = ChatTemplate("{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}a:", "<s>", "</s>")


class Letters:
    """One token per character."""

    def encode(self, text):
        return [ord(letter) for letter in text]


def encoded(text, *, prefix="", limit=200_000, template=PLAIN):
    ids, cut = chat.encode(Letters(), template, text, prefix=prefix, max_tokens=limit)
    assert len(ids) <= limit
    return "".join(map(chr, ids)), cut


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("Hi", "u:Hi;a:"),
        ('["Hi", "Ho", "Ha"]', "u:Hi;a:Ho;u:Ha;a:"),
        ('["Ho", "Ha"]', "a:Ho;u:Ha;a:"),
        ('[{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}]', "s:S;u:Hi;a:"),
        ("[sic] this", "u:[sic] this;a:"),
        ("[]", "u:[];a:"),
        ("[12]", "u:[12];a:"),
        ("[" * 100_000, "u:" + "[" * 100_000 + ";a:"),
    ],
)
def test_what_a_record_may_be(text, prompt):
    assert encoded(text) == (prompt, False)


def test_the_prefix_goes_before_the_last_message():
    assert encoded('["Hi", "Ho", "Ha"]', prefix="Sum: ")[0] == "u:Hi;a:Ho;u:Sum: Ha;a:"


@pytest.mark.parametrize("text", ['["a", 3]', '[{"role": "user"}]', '[{"role": "user", "content": ["x"]}]'])
def test_no_conversation(text):
    with pytest.raises(ChatError, match="a turn is"):
        encoded(text)


def test_a_published_template():
    prompt = encoded("Hi", template=ChatTemplate(SMOLLM2))[0]
    assert prompt == (
        "<|im_start|>system\nYou are helpful<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("limit", "prompt"),
    [
        (25, "s:S;u:3;a:4;u:5;a:"),
        (18, "s:S;u:3;a:4;u:5;a:"),
        (17, "s:S;u:5;a:"),
        (10, "s:S;u:5;a:"),
    ],
)
def test_the_oldest_turns_go_first(limit, prompt):
    turns = [("system", "S"), ("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4"), ("user", "5")]
    text = json.dumps([{"role": role, "content": content} for role, content in turns])
    assert encoded(text, limit=26) == ("s:S;u:1;a:2;u:3;a:4;u:5;a:", False)
    assert encoded(text, limit=limit) == (prompt, True)


def test_the_last_message_is_cut_and_the_template_kept():
    assert encoded("abcdefgh", limit=8) == ("u:abc;a:", True)
    with pytest.raises(ChatError, match="cannot be cut to 3 tokens"):
        encoded("abcdefgh", limit=3)


def test_a_system_message_alone_is_cut_like_any_other():
    assert encoded('[{"role": "system", "content": "abcdefgh"}]', limit=8) == ("s:abc;a:", True)


def test_special_tokens_and_refusals_of_a_template():
    assert encoded("x", template=ChatTemplate("{{ bos_token }}{{ eos_token }}", "<s>", "</s>"))[0] == "<s></s>"
    with pytest.raises(ChatError, match="roles must alternate"):
        encoded("x", template=ChatTemplate("{{ raise_exception('roles must alternate') }}"))
    with pytest.raises(ChatError, match="TemplateSyntaxError"):
        encoded("x", template=ChatTemplate("{% for"))


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
    ],
)
def test_templates_are_sandboxed(source):
    with pytest.raises(ChatError, match="SecurityError|UndefinedError"):
        chat.render(ChatTemplate(source), [{"role": "user", "content": "x"}])


def test_the_date_is_a_setting():
    source = "{{ strftime_now('%d %B %Y') if strftime_now is defined else 'never' }}"
    assert encoded("x", template=ChatTemplate(source, date="2024-07-26"))[0] == "26 July 2024"
    assert encoded("x", template=ChatTemplate(source, date=None))[0] == "never"
    assert encoded("x", template=ChatTemplate(source))[0] == datetime.datetime.now().strftime("%d %B %Y")


MESSAGES = [{"role": "user", "content": "hü"}, {"role": "assistant", "content": "yo"}, {"role": "user", "content": "<b>"}]
PARTS = (
    "{% if tools is not none %}T{% endif %}{% if documents is not none %}D{% endif %}",
    "{{ bos_token }}{{ pad_token }}{{ unk_token }}{% if sep_token is defined %}S{% endif %}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "{{ messages | tojson }}|{{ messages[0] | tojson(indent=2) }}|{{ {'b': 1, 'a': '<'} | tojson(sort_keys=true) }}",
    "{{ messages[0] | tojson(separators=(',', ':'), ensure_ascii=true) }}",
    "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}",
    "{%- set ns = namespace(n=0) -%}\n  {% for m in messages %}\n{% set ns.n = ns.n + 1 %}\n  {% endfor %}\n{{ ns.n }}\n",
)


def test_what_templates_may_use_is_what_transformers_gives_them(tmp_path):
    transformers = pytest.importorskip("transformers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3}, "<unk>"))
    words.save(str(tmp_path / "tokenizer.json"))
    for config, special in (
        ({"bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>"}, "pad_token": "<pad>"}, {}),
        ({"bos_token": None}, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": {"content": "<unk>"}}),
        ({"added_tokens_decoder": {}, "bos_token": "<s>"}, {"bos_token": "</s>"}),
    ):
        for part in PARTS:
            about = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": part, **config}
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
            (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
            theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
            wanted = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
            assert chat.render(chat.find_template(str(tmp_path)), MESSAGES) == wanted, part


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% for i in range(10**9) %}{% endfor %}", "OverflowError"),
        pytest.param(
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "more than 5 seconds",
            marks=pytest.mark.slow,
        ),
        ("{{ 'a' * 10**10 }}", "memory"),
        pytest.param("{{ 10**(10**10) }}", "more than 5 seconds|memory", marks=pytest.mark.slow),
        ("{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}", "memory"),
        ("{{ '%10000000000d' % 1 }}", "memory"),
        ("{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}", "characters"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
    ],
)
def test_templates_that_loop_or_grow_end_in_an_error(source, said):
    began = time.monotonic()
    with pytest.raises(ChatError, match=said):
        chat.render(ChatTemplate(source), MESSAGES)
    assert time.monotonic() - began < 60  # seconds of processor time, on a machine that others use too
    assert chat.render(PLAIN, MESSAGES[:1]) == "u:hü;a:"


def test_where_templates_are_found(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ChatError, match="no chat template comes with"):
        chat.find_template(str(tmp_path))
    config = {"chat_template": "A", "bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert chat.find_template(str(tmp_path)) == ChatTemplate("A", "<s>", "</s>")
    config["chat_template"] = [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert chat.find_template(str(tmp_path)).source == "D"
    (tmp_path / "chat_template.jinja").write_text("J")
    assert chat.find_template(str(tmp_path / "tokenizer.json")).source == "J"
    assert chat.find_template(str(tmp_path), "own {{ bos_token }}") == ChatTemplate("own {{ bos_token }}", "<s>", "</s>")
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.json").write_text('{"chat_template": "P"}')  # of processors; tokenisers do not read it
    assert chat.find_template(str(tmp_path)).source == "D"
    transformers = pytest.importorskip("transformers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0}, "<unk>"))
    words.save(str(tmp_path / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": config["chat_template"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
    for file in ("", "chat_template.jinja"):
        if file:
            (tmp_path / file).write_text("J")
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert chat.find_template(str(tmp_path)).source == theirs.get_chat_template()
    (tmp_path / "chat_template.jinja").unlink()
    for broken, said in (([{"name": "tool", "template": "T"}], "called default"), ({"a": 1}, "a dict, not a text"), (3, "int")):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": broken}))
        with pytest.raises(ChatError, match=said):
            chat.find_template(str(tmp_path))


def test_the_template_in_a_gguf_file(tmp_path):
    values = {
        "tokenizer.chat_template": "G", "tokenizer.ggml.tokens": ["<s>", "</s>"],
        "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1,
    }  # fmt: skip
    path = tiny_gguf.write(tmp_path / "x.gguf", values, {})
    assert chat.find_template(path) == ChatTemplate("G", "<s>", "</s>")
