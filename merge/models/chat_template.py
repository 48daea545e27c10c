"""Chat templates: a recipe's ``auto``, built-in name or own Jinja, and what a model folder has."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from heterosis.errors import InputError
from heterosis.merge.files import read_json, read_ordinary

# Where transformers 5 keeps the template; before, it was a key of tokenizer_config.json.
CHAT_TEMPLATE_FILE = "chat_template.jinja"

# Alpaca's, EXAONE's and Llama 3's prompts differ from mergekit's in whitespace, of which its templates print some
# of their own: blanks and newlines between the parts, and none before Alpaca's last heading.
BUILT_IN = {
    "alpaca": r"""{%- set systems = messages | selectattr('role', 'equalto', 'system') | list %}
{%- if systems %}
{{- systems[-1].content | trim ~ '\n\n' }}
{%- endif %}
{%- set headings = {'user': 'Instruction', 'user_context': 'Input', 'assistant': 'Response'} %}
{%- for message in messages if message.role in headings %}
{{- '### ' ~ headings[message.role] ~ ':\n' ~ message.content | trim ~ ('' if loop.last else '\n\n') }}
{%- endfor %}
{%- if add_generation_prompt and messages[-1].role != 'assistant' %}
{{- '\n\n### Response:\n' }}
{%- endif %}""",
    "chatml": r"""{%- for message in messages %}
{{- '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- endif %}""",
    "exaone": r"""{%- if messages[0].role != 'system' %}
{{- '[|system|][|endofturn|]\n' }}
{%- endif %}
{%- for message in messages %}
{{- '[|' ~ message.role ~ '|]' ~ message.content ~ ('\n' if message.role == 'user' else '[|endofturn|]\n') }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '[|assistant|]' }}
{%- endif %}""",
    "llama3": r"""{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\n\n' ~ message.content | trim ~ '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}""",
    "mistral": r"""{{- bos_token }}
{%- set system = messages[0].content ~ '\n\n' if messages[0].role == 'system' else '' %}
{%- for message in (messages[1:] if system else messages) %}
{%- if message.role != ('assistant' if loop.index0 % 2 else 'user') %}
{{- raise_exception('Messages must be from user and assistant in turn, after at most one from the system') }}
{%- elif message.role == 'user' %}
{{- ' [INST] ' ~ (system if loop.first else '') ~ message.content ~ ' [/INST]' }}
{%- else %}
{{- ' ' ~ message.content ~ eos_token }}
{%- endif %}
{%- endfor %}""",
}


def chosen_template(setting: str | None, templates: Iterable[str | None]) -> str | None:
    """The template that a recipe asks for; None where there is none to set.

    Args:
        setting: The recipe's ``chat_template``: ``auto`` for the one that most models have, and of equally
            frequent ones that of the earliest model; else a built-in name, or Jinja.
        templates: The models' own, in the recipe's order.

    Raises:
        InputError: If it is Jinja that cannot be parsed.
    """
    if setting is None:
        return None
    if setting == "auto":
        counts = Counter(template.strip() for template in templates if template)
        return counts.most_common(1)[0][0] if counts else None
    if setting in BUILT_IN:
        return BUILT_IN[setting]
    _check(setting)
    return setting


def _check(template: str) -> None:
    """Parse a template with the extensions that transformers compiles it with."""
    extensions: list[str | type[Extension]] = ["jinja2.ext.loopcontrols", _Generation]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    try:
        # Parsed and not compiled, which would compute constants such as 9**9**9.
        tree = environment.parse(template)
        for node in tree.find_all((nodes.Filter, nodes.Test)):
            is_filter = isinstance(node, nodes.Filter)
            if node.name not in (environment.filters if is_filter else environment.tests):
                raise TemplateSyntaxError(
                    f"No {'filter' if is_filter else 'test'} named {node.name!r}.", node.lineno
                )
    except RecursionError:
        raise InputError("chat_template: must be valid Jinja, but is nested too deep") from None
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        raise InputError(
            f"chat_template: must be valid Jinja, but {f'in line {line} ' if line else ''}got: {error.message}"
        ) from None


class _Generation(Extension):
    """``{% generation %}``, with which transformers' templates mark what the assistant said."""

    tags = {"generation"}  # noqa: RUF012 (declared so by jinja2)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def folder_template(folder: Path) -> str | None:
    """The chat template of a model folder, looked for where transformers does."""
    path = folder / CHAT_TEMPLATE_FILE
    if path.is_file():
        return read_ordinary(path)
    for name in ("tokenizer_config.json", "chat_template.json"):
        path = folder / name
        template = read_json(path).get("chat_template") if path.is_file() else None
        if isinstance(template, list):  # several, with names
            named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
            template = named.get("default")
        if isinstance(template, str):
            return template
    return None
