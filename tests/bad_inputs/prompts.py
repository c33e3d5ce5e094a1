"""Prompts that would ask nothing, tell the answer, change a row's text, or cannot be read."""
from . import Bad


def prompt(*parts, **fields):
    "Make settings of a prompt of these parts."
    return {"prompt": {"parts": [list(part) for part in parts], **fields}}


QUESTION, ANSWER = ("question", "{question}\n"), ("answer", "{answer}")
CHANGES = "would change what a row holds"

CASES = [
    Bad("a prompt that nobody knows", {"prompt": "koalpacca"}, ("prompt", "koalpaca")),
    Bad("a number", {"prompt": 5}, ("prompt", "5")),
    Bad("a list", {"prompt": [["question", "{question}"]]}, "prompt"),
    Bad("a field of Prompt that is none", {"prompt": {"part": []}}, ("prompt", "'part'", "'parts'")),
    Bad("no parts", {"prompt": {"chat": True}}, ("prompt", "parts")),
    Bad("parts that are text", {"prompt": {"parts": "{question} {answer}"}}, ("prompt", "parts")),
    Bad("a part of three", {"prompt": {"parts": [["question", "{question}", "x"], list(ANSWER)]}}, ("prompt", "parts")),
    Bad("a part that is a number", prompt(("question", 5), ANSWER), ("prompt", "parts")),
    Bad("no part at all", prompt(), "must end with its one answer part"),
    Bad("a role that is none", prompt(("prefix", "{question}"), ANSWER), ("'prefix'", "roles are")),
    Bad("a role with control characters", prompt(("\x1b[2J", "{question}"), ANSWER), (r"\\x1b", "roles are")),
    Bad("a field that rows lack", prompt(("question", "{quesion}"), ANSWER), ("{quesion}", "{question}")),
    Bad("a field within a field", prompt(("question", "{question:{answr}}"), ANSWER), ("{question:{answr}}", CHANGES)),
    Bad("an attribute of a field", prompt(("question", "{question.__class__}"), ANSWER), "a row has only"),
    Bad("an item of a field", prompt(("question", "{question[0]}"), ANSWER), "a row has only"),
    Bad("a field without a name", prompt(("question", "{} {question}"), ANSWER), "a row has only"),
    Bad("a field by number", prompt(("question", "{0} {question}"), ANSWER), "a row has only"),
    Bad("a conversion that is none", prompt(("question", "{question!z}"), ANSWER), ("{question!z}", CHANGES)),
    Bad("a conversion that adds quotes", prompt(("question", "{question!r}"), ANSWER), ("{question!r}", CHANGES)),
    Bad("a format of numbers", prompt(("question", "{question:d}"), ANSWER), ("{question:d}", CHANGES)),
    Bad("a width of terabytes", prompt(("question", "{question:>1000000000000}"), ANSWER), ("{question:>1000000000000}", CHANGES)),
    Bad("a question that is cut", prompt(("question", "{question:.100}"), ANSWER), ("{question:.100}", CHANGES)),
    Bad("an answer that is cut", prompt(QUESTION, ("answer", "{answer}{answer:.5}")), ("{answer:.5}", CHANGES)),
    Bad("an answer that is left out", prompt(QUESTION, ("answer", "{answer:.0}")), "must end with its one answer part"),
    Bad("a brace that is open", prompt(("question", "{question"), ANSWER), ("cannot be read", "written twice")),
    Bad("a brace that closes nothing", prompt(("question", "{question}}"), ANSWER), ("cannot be read", "written twice")),
    Bad("no question", prompt(("marker", "답:"), ANSWER), "shows no {question}"),
    Bad("a question in the answer alone", prompt(("answer", "{question}\n{answer}")), "shows no {question} before its answer"),
    Bad("a question in the header, which later exchanges lack", prompt(("header", "{question}\n"), ANSWER), "{question} in a part with the role system or header"),
    Bad("an input in the system part", prompt(("system", "{input}\n"), ("question", "{question}\n"), ANSWER), "{input} in a part with the role"),
    Bad("a question that only asks whether it is there", prompt(("question", "{question:.0}질문\n"), ANSWER), "shows no {question}"),
    Bad("the answer in the question", prompt(("question", "{question} ({answer})\n"), ANSWER), "{answer} more than once"),
    Bad("the answer twice", prompt(QUESTION, ("answer", "{answer} {answer}")), "{answer} more than once"),
    Bad("no answer", prompt(QUESTION), "must end with its one answer part"),
    Bad("two answers", prompt(QUESTION, ANSWER, ANSWER), "must end with its one answer part"),
    Bad("the answer first", prompt(ANSWER, QUESTION), "must end with its one answer part"),
    Bad("an answer in braces", prompt(QUESTION, ("answer", "{{answer}}")), "{answer}"),
    Bad("a space before the answer", prompt(("question", "{question} 답: "), ANSWER), "move the space"),
    Bad("thinking without a chat template", prompt(QUESTION, ANSWER, thinking=True), "thinking=true"),
    Bad("chat that is no yes or no", prompt(QUESTION, ANSWER, chat="perhaps"), ("prompt", "chat")),
]
