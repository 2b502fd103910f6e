"""The built-in evaluation texts: enough of each domain for an interval, and words of the model to score."""

from gemma4_quant.measuring.texts import DOMAINS, FOLDER, builtin_domains
from gemma4_quant.texts.documents import Chat


def test_each_domain_has_several_documents() -> None:
    domains = builtin_domains()
    assert tuple(domains) == DOMAINS
    assert {path.name for path in FOLDER.iterdir() if path.is_dir()} == set(DOMAINS)
    assert all(len(documents) >= 4 for documents in domains.values())


def test_chats_end_with_the_models_words() -> None:
    for documents in builtin_domains().values():
        for document in documents:
            if isinstance(document.content, Chat):
                assert document.content.messages[-1]["role"] == "assistant", document.name


def test_calls_are_scored_as_well_as_answers() -> None:
    last = [
        document.content.messages[-1] for document in builtin_domains()["tools"] if isinstance(document.content, Chat)
    ]
    assert any(message.get("tool_calls") for message in last)
    assert any(message["content"] for message in last)


def test_documents_are_long() -> None:
    for document in builtin_domains()["documents"]:
        assert isinstance(document.content, str)
        assert len(document.content) > 2500, document.name
