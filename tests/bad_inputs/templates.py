"""Chat templates that fail, lose what was said, or write something else each time."""
import json
from pathlib import Path

from . import Bad

TURN = "{{ '<' + message.role + '>' + message.content + eos_token }}"
OPENING = "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
WAY_OUT = "tokenizer_args={chat_template"


def each(turn: str, opening: str = OPENING) -> str:
    "Write a template that renders each message by `turn`."
    return f"{{% for message in messages %}}{turn}{{% endfor %}}{opening}"


def chat(template, **settings) -> dict:
    return {"prompt": "chat", "tokenizer_args": {"chat_template": template}, **settings}


def bad(name: str, template, *says: str, **settings) -> Bad:
    return Bad(name, chat(template, **settings), ("prompt=chat", *says, WAY_OUT))


def talk(template: str, *messages: tuple[str, str]):
    "Make settings whose dataset is one conversation, some times over."
    def write(folder: Path) -> dict:
        rows = [json.dumps({"messages": [{"role": role, "content": f"{number} {content}"} for role, content in messages]}) for number in range(12)]
        (folder / "talks.jsonl").write_text("\n".join(rows), encoding="utf-8")
        return chat(template, dataset=str(folder / "talks.jsonl"))

    return write


LONG_TALK = (("user", "봄에는?"), ("assistant", "꽃이 핍니다."), ("user", "가을에는?"), ("assistant", "잎이 집니다."))

CASES = [
    # It fails
    bad("a division by zero", each(TURN) + "{{ 1 / 0 }}", "ZeroDivisionError"),
    bad("a type error", each("{{ message.content + 5 }}"), "TypeError"),
    bad("a name that is not there", each("{{ message.content + speaker.name }}"), "UndefinedError", "speaker"),
    bad("a message without end", each(TURN) + "{% for number in range(10**12) %}{{ number }}{% endfor %}", "Overflow|[Rr]ange"),
    bad("a text of 100 GB", each(TURN) + "{{ 'a' * 10**11 }}", "MemoryError|OverflowError|characters"),
    bad("a text of 20 MB", each(TURN) + "{{ 'a' * 20000000 }}", "20,0.. characters|20,000,... characters"),
    bad("a macro that calls itself", "{% macro again() %}{{ again() }}{% endmacro %}" + each(TURN) + "{{ again() }}", "RecursionError"),
    bad("a block that is not closed", "{% for message in messages %}{{ message.content }}", "TemplateSyntaxError"),
    bad("an expression that is not closed", each("{{ message.content "), "TemplateSyntaxError"),
    bad("a filter that is not known", each("{{ message.content | shout }}"), "shout"),
    bad("a test that is not known", each("{% if message.content is loud %}{{ message.content }}{% endif %}"), "loud"),
    bad("another template to be included", "{% include 'base.jinja' %}" + each(TURN), "TypeError|TemplateNotFound|no loader"),
    bad("a way out of the sandbox", each("{{ message.content.__class__.__mro__ }}"), "SecurityError|unsafe"),
    bad("an integer read from what is said", each("{{ message.content.split()[999] }}"), "UndefinedError|refuses|leaves out"),
    bad("it refuses every conversation", each("{{ raise_exception('Only tools may speak') }}"), "Only tools may speak"),
    bad("it wants a role that is never there", "{% if messages[0].role != 'developer' %}{{ raise_exception('unknown role: user') }}{% endif %}" + each(TURN), "unknown role: user"),
    # It is none
    Bad("a number for a template", chat(5), ("chat_template=5", "string")),
    Bad("a list of templates", chat([each(TURN)]), ("chat_template=", "string")),
    Bad("a template for each use", chat({"default": each(TURN)}), ("chat_template=", "string")),
    Bad("none at all", {"prompt": "chat"}, ("prompt=chat", "no chat template", "lab", WAY_OUT)),
    bad("a text that is no template", "chatml", "leaves out", "user"),
    # It loses or changes what was said
    bad("roles alone", each("{{ '<' + message.role + '>' }}"), "leaves out", "user"),
    bad("no word of the assistant's", each("{% if message.role == 'assistant' %}{{ '<assistant>' + eos_token }}{% else %}" + TURN + "{% endif %}"), "leaves out", "assistant"),
    bad("no word of the user's", each("{% if message.role == 'assistant' %}" + TURN + "{% endif %}"), "leaves out", "user"),
    bad("the last message alone", "{{ messages[-1].content }}" + OPENING, "leaves out|differently"),
    bad("messages in the order of the alphabet", "{% for message in messages | sort(attribute='role') %}" + TURN + "{% endfor %}" + OPENING, "rearranges|differently"),
    bad("messages backwards", "{% for message in messages | reverse %}" + TURN + "{% endfor %}" + OPENING, "rearranges|differently"),
    bad("words in the order of the alphabet", each("{{ message.content.split() | sort | join(' ') }}"), "rearranges"),
    bad("the first three letters", each("{{ message.content[:3] + eos_token }}"), "leaves out"),
    bad("shortened, with dots", each("{{ message.content | truncate(6, True, '..', 0) }}{{ eos_token }}"), "leaves out"),
    bad("without digits", each("{{ message.content.replace('1', '') + eos_token }}"), "changes"),
    bad("quoted for HTML", each("{{ (message.content + '&') | escape | replace('&amp;', '') | replace('?', '&#63;') }}{{ eos_token }}"), "changes"),
    bad("quoted for a URL", each("{{ message.content | urlencode }}{{ eos_token }}"), "changes"),
    bad("without the end of sentences", each("{{ message.content.rstrip('.?') + eos_token }}"), "changes"),
    Bad("without the earlier answers", talk(each("{% if message.role == 'user' or loop.last %}" + TURN + "{% endif %}"), *LONG_TALK), ("prompt=chat", "leaves out|learn_turns=last")),
    Bad("the last exchange alone", talk("{% for message in messages[-2:] %}" + TURN + "{% endfor %}" + OPENING, *LONG_TALK), ("prompt=chat", "leaves out|learn_turns=last|differently")),
    # It asks otherwise than it trains
    bad("no opening of the assistant's turn", each("{{ '<' + message.role + '>\n' + message.content + eos_token }}", ""), "add_generation_prompt"),
    bad("another opening than the turn has", each(TURN, "{% if add_generation_prompt %}{{ '<bot>' }}{% endif %}"), "differently"),
    bad("the question again after the answer", each(TURN) + "{% if not add_generation_prompt %}{{ messages[0].content }}{% endif %}" + "{% if messages | length == 1 %}{{ '?' }}{% endif %}", "differently"),
    bad("the number of messages first", "{{ messages | length }}" + each(TURN), "differently"),
    # It writes something else each time
    bad("a day in a format of its own", "{% set form = '%d %b %Y' %}{{ strftime_now(form) }}" + each(TURN), "time", "strftime_now"),
    Bad("a day, and nobody asks", chat(each(TURN), template_day="2026-11-26"), ("template_day", "leave it out")),
    Bad("a day for a plain prompt", {"prompt": "lab", "template_day": "2026-11-26"}, ("template_day", "prompt=chat")),
    Bad("a 45th", chat("{{ strftime_now('%Y') }}" + each(TURN), template_day="2026-11-45"), ("template_day", "YYYY-MM-DD")),
    Bad("a day in words", chat("{{ strftime_now('%Y') }}" + each(TURN), template_day="yesterday"), ("template_day", "YYYY-MM-DD")),
    bad("a greeting by chance", "{{ ['Hi', 'Hello'] | random }}" + each(TURN), "chance", "random"),
    bad("a paragraph by chance", "{{ lipsum(n=1) }}" + each(TURN), "chance", "lipsum"),
    bad("a place in memory", "{{ raise_exception }}" + each(TURN), "object of the program"),
    bad("a generator instead of what it gives", "{{ messages | map(attribute='role') }}" + each(TURN), "object of the program"),
]
