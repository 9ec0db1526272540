"""YAML with positions: every mistake has its line and column, and no input makes it crash or hang."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twin.model.mistakes import BadInput
from twin.model.yamlmarks import MAX_BYTES, document, documents, read, text_of


def mistakes(text):
    with pytest.raises(BadInput) as caught:
        documents(text, "f.yaml")
    return [str(m) for m in caught.value.mistakes]


def test_values_and_keys_know_where_they_stand():
    doc = document("a: 1\nspec:\n  list:\n    - {x: 1}\n    - y:   two\n", "f.yaml")

    assert doc.mark(("spec", "list", 1, "y")) == (5, 12)
    assert doc.key_mark(("spec", "list", 1, "y")) == (5, 7)
    assert doc.mark(("spec", "list", 0, "x")) == (4, 11)
    assert doc.mark(("spec", "nothing", "here")) == (3, 3), "the nearest ancestor that exists"
    assert doc.mark() == (1, 1)


def test_scalars_are_what_kubernetes_tools_make_of_them():
    data = document("a: yes\nb: 1e9\nc: 2024-01-01\nd: 12:30\ne: 0644\nf: ~\ng: '1'\nh: .5\ni: 1_000\nj: 0x1F\n"
                    "k: -7\nl: 1.25e9\n", "f.yaml").data

    assert data == {"a": True, "b": 1e9, "c": "2024-01-01", "d": "12:30", "e": 420, "f": None, "g": "1", "h": 0.5,
                    "i": 1000, "j": 31, "k": -7, "l": 1.25e9}


def test_merge_keys_fill_in_what_is_absent():
    assert document("a: &x {k: 1, l: 2}\nb: {<<: *x, l: 3}\n", "f.yaml").data["b"] == {"l": 3, "k": 1}


def test_each_document_of_a_file_stands_where_it_begins():
    found = documents("---\na: 1\n---\n# nothing\n---\nb: 2\n", "f.yaml")

    assert [(d.data, d.mark()) for d in found] == [({"a": 1}, (2, 1)), ({"b": 2}, (6, 1))]


@pytest.mark.parametrize(("text", "mistake"), [
    ("", "f.yaml: empty: holds no YAML document"),
    ("# only\n---\n", "f.yaml: empty: holds no YAML document"),
    ("a:\n\t- b\n", "f.yaml:2:1: tabs may not indent YAML, use spaces"),
    ("a: [1, 2\nb: 3\n", "f.yaml:2:2: not YAML: expected ',' or ']', while parsing a flow sequence"),
    ("a: b: c", "f.yaml:1:5: not YAML: mapping values are not allowed in this context"),
    ("a: 1\nb:\n  c: 1\n  c: 2\n", "f.yaml:4:3: duplicate key 'c'"),
    ("a: &a [*a]\n", "f.yaml:1:4: an alias (*name) refers to the value it stands in"),
    ("a: *b\n", "f.yaml:1:4: not YAML: found undefined alias"),
    ("? [a]\n: 1\n", "f.yaml:1:3: a key must be plain text"),
])
def test_broken_yaml_is_told_with_its_place(text, mistake):
    assert mistakes(text) == [mistake]


def test_all_duplicate_keys_of_a_file_are_told_at_once():
    assert len(mistakes("a: 1\na: 2\n---\nb: 1\nb: 2\nb: 3\n")) == 3


def test_an_alias_bomb_is_refused():
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))

    assert "grow this file beyond reason" in mistakes(bomb)[0]


@pytest.mark.parametrize("text", ["[" * 100_000, "- " * 5000 + "x", "? " * 3000, "{a: " * 9000,
                                  "".join(" " * i + "a:\n" for i in range(1500))])
def test_deep_nesting_is_refused_and_not_followed(text):
    assert "nested deeper than 200 levels" in mistakes(text)[0]


def test_a_second_document_or_a_list_is_refused_where_one_mapping_was_expected():
    with pytest.raises(BadInput, match=r"f.yaml:3:1: one YAML document was expected"):
        document("a: 1\n---\nb: 1\n", "f.yaml")
    with pytest.raises(BadInput, match=r"a mapping \(key: value\) was expected \(got \[1\]\)"):
        document("- 1\n", "f.yaml")


def test_a_binary_file_is_refused_with_the_byte_that_shows_it():
    with pytest.raises(BadInput, match=r"f.yaml:2:1: not a text file: expected UTF-8 \(got byte 0xff\)"):
        text_of(b"a: 1\n\xff\xfe", "f.yaml")
    with pytest.raises(BadInput, match="got byte 0x00"):
        text_of(b"ELF\0\0", "f.yaml")


def test_a_byte_order_mark_is_no_content():
    assert document(text_of("\ufeffa: 1\n".encode(), "f.yaml"), "f.yaml").data == {"a": 1}


def test_a_huge_file_is_refused_without_being_read(tmp_path):
    path = tmp_path / "big.yaml"
    with path.open("wb") as file:
        file.truncate(100 * 2**20)

    with pytest.raises(BadInput, match=rf"larger than {MAX_BYTES // 2**20} MiB.* \(got 100 MiB"):
        read(path)


def test_a_folder_or_nothing_where_a_file_was_expected_is_told(tmp_path):
    with pytest.raises(BadInput, match="is a folder"):
        read(tmp_path)
    with pytest.raises(BadInput, match=r"cannot be read: No such file or directory"):
        read(tmp_path / "absent.yaml")


@pytest.mark.parametrize(("name", "why"), [
    pytest.param("x" * 5000, "File name too long", id="long"), ("a\0b", "embedded null byte")])
def test_a_name_that_no_file_can_have_is_told(tmp_path, name, why):
    with pytest.raises(BadInput, match=f"cannot be read: {why}"):
        read(tmp_path / name)


def understood(content):
    """The documents, or the mistakes that were told."""
    try:
        return documents(text_of(content, "f.yaml"), "f.yaml"), ()
    except BadInput as told:
        return [], told.mistakes


@given(st.text(max_size=200).map(str.encode) | st.binary(max_size=200))
def test_no_content_makes_it_crash(content):
    found, told = understood(content)

    assert bool(found) != bool(told)
    assert all(doc.mark(("a", 0, "b"))[0] > 0 for doc in found)
    assert all(m.file == "f.yaml" and m.rule for m in told)


letters = st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1)
plain = st.text(st.characters(min_codepoint=32, max_codepoint=126))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-10**6, 10**6) | plain,
    lambda below: st.lists(below, max_size=4) | st.dictionaries(letters, below, max_size=4), max_leaves=12)


@settings(max_examples=30)
@given(st.dictionaries(letters, json_values, min_size=1))
def test_json_is_yaml_and_reads_back_as_it_was(data):
    assert document(json.dumps(data), "f.yaml").data == data
