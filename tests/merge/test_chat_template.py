"""Chat templates: the built-in ones against mergekit's, and what is found in folders."""

import importlib.resources
import json
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerFast

from heterosis.errors import InputError
from heterosis.merge.models.chat_template import BUILT_IN, chosen_template, folder_template
from heterosis.merge.recipe.recipe import CHAT_TEMPLATES

Messages = list[dict[str, str]]


def talk(roles: str) -> Messages:
    names = {"s": "system", "u": "user", "a": "assistant", "c": "user_context"}
    return [{"role": names[role], "content": f"Text {i},\n  of {role}."} for i, role in enumerate(roles)]


def render(template: str, messages: Messages, prompt: bool) -> str:
    """As transformers does."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def refuse(reason: str) -> None:
        raise ValueError(reason)

    environment.globals["raise_exception"] = refuse
    return environment.from_string(template).render(
        messages=messages, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>"
    )


def test_the_names_that_recipes_may_use_are_built_in() -> None:
    assert tuple(BUILT_IN) == CHAT_TEMPLATES


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("roles", ["u", "su", "ua", "uau", "sua", "suaua"])
@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_prompts_are_mergekit_s(name: str, roles: str, prompt: bool) -> None:
    pytest.importorskip("mergekit")
    file = importlib.resources.files("mergekit").joinpath(f"_data/chat_templates/{name}.jinja")
    ours, theirs = (render(text, talk(roles), prompt) for text in (BUILT_IN[name], file.read_text()))
    if name in ("alpaca", "exaone", "llama3"):  # where its own have stray blanks
        ours, theirs = "".join(ours.split()), "".join(theirs.split())
    assert ours == theirs


@pytest.mark.parametrize(
    ("name", "roles", "expected"),
    [
        ("alpaca", "u", "### Instruction:\n0\n\n### Response:\n"),
        ("alpaca", "scu", "0\n\n### Input:\n1\n\n### Instruction:\n2\n\n### Response:\n"),
        ("alpaca", "ua", "### Instruction:\n0\n\n### Response:\n1"),
        ("chatml", "u", "<|im_start|>user\n0<|im_end|>\n<|im_start|>assistant\n"),
        ("exaone", "ua", "[|system|][|endofturn|]\n[|user|]0\n[|assistant|]1[|endofturn|]\n[|assistant|]"),
        ("exaone", "su", "[|system|]0[|endofturn|]\n[|user|]1\n[|assistant|]"),
        (
            "llama3",
            "su",
            "<s><|start_header_id|>system<|end_header_id|>\n\n0<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
            "1<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        ("mistral", "suau", "<s> [INST] 0\n\n1 [/INST] 2</s> [INST] 3 [/INST]"),
    ],
)
def test_prompts_to_the_letter(name: str, roles: str, expected: str) -> None:
    messages = [message | {"content": str(i)} for i, message in enumerate(talk(roles))]
    assert render(BUILT_IN[name], messages, True) == expected


@pytest.mark.parametrize("roles", ["a", "uu", "sa", "uas"])
def test_mistral_wants_turns(roles: str) -> None:
    with pytest.raises(ValueError, match="from user and assistant in turn"):
        render(BUILT_IN["mistral"], talk(roles), True)


# --- choosing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "templates", "chosen"),
    [
        (None, ["a"], None),
        ("chatml", ["a"], BUILT_IN["chatml"]),
        ("{{ messages[0].content }}", ["a"], "{{ messages[0].content }}"),
        ("auto", ["a", "b", " b\n", None], "b"),
        ("auto", ["b", "a", "a ", "b"], "b"),
        ("auto", ["a", "b"], "a"),
        ("auto", [None, "", "a"], "a"),
        ("auto", [None], None),
    ],
)
def test_choice(setting: str | None, templates: list[str | None], chosen: str | None) -> None:
    assert chosen_template(setting, templates) == chosen


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% if m.skip %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    ],
)
def test_what_transformers_compiles_is_taken(template: str) -> None:
    assert chosen_template(template, []) == template


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{% for m in messages %}{{ m.content }}", "must be valid Jinja, but in line 1 got: Unexpected end"),
        ("one\n{{ messages | nonsense }}", "in line 2 got: No filter named 'nonsense'"),
        ("{{ messages[ }} and so on", "in line 1 got: "),
    ],
)
def test_what_cannot_be_compiled_is_refused_in_one_line(template: str, fault: str) -> None:
    with pytest.raises(InputError) as caught:
        chosen_template(template, [])
    (line,) = caught.value.faults
    assert line.startswith("chat_template: ")
    assert fault in line
    assert "\n" not in line


# --- folders ----------------------------------------------------------------------------------------------------

CONFIG: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"tokenizer_config.json": {"chat_template": "config"}}, "config"),
        ({"chat_template.jinja": "file", "tokenizer_config.json": {"chat_template": "config"}}, "file"),
        (
            {"tokenizer_config.json": {"chat_template": [{"name": n, "template": n} for n in ("rag", "default")]}},
            "default",
        ),
        ({"tokenizer_config.json": {"chat_template": [{"name": "rag", "template": "rag"}]}}, None),
    ],
)
def test_a_folder_s_template_is_the_one_that_transformers_finds(
    tmp_path: Path, files: dict[str, Any], expected: str | None
) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    for name, content in ({"tokenizer_config.json": {}} | files).items():
        text = content if isinstance(content, str) else json.dumps(CONFIG | content)
        (tmp_path / name).write_text(text)
    assert folder_template(tmp_path) == expected
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path).chat_template
    assert (theirs.get("default") if isinstance(theirs, dict) else theirs) == expected


def test_a_processor_s_template_counts_where_there_is_no_other(tmp_path: Path) -> None:
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "processor"}))
    assert folder_template(tmp_path) == "processor"


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_config\.json: not valid JSON"):
        folder_template(tmp_path)
