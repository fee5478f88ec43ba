"""Study files as fingers, editors and generators leave them: one message, in a moment."""

from __future__ import annotations

import os
import re
import time
import warnings
from pathlib import Path

import pytest
import yaml

from study.comparison.file import load_comparison, parse_comparison
from study.errors import StudyFileError, UserError
from study.plan.study import remarks
from study.spec.document import MOST_BYTES, read_text
from study.spec.files import load_policy, load_study, parse_study
from study.spec.suite import load_suite
from tests.support.study_files import minimal

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}], {name}: 1}}\n"
    for before, name in zip("abcdefg", "bcdefgh", strict=True)
)


def problems_of(text: str) -> list[str]:
    with pytest.raises(StudyFileError) as caught:
        parse_study(text, source="study.yaml")
    return [str(problem) for problem in caught.value.problems]


SEARCHED = "{{train.optimizer.lr: {}}}"
CUT_SHORT = {  # what is in the file, and the one line that says so; some were tracebacks, others took minutes
    "a key that YAML reads as true": (
        minimal(search=SEARCHED.format("{low: 1e-4, high: 1e-3, yes: x}")),
        "line 5: search.train.optimizer.lr = {'low': 0.0001, 'high': 0.001, 'yes': 'x'}: unknown key 'yes'",
    ),
    **{f"a key that is {key}": (
        minimal(search=SEARCHED.format(f"{{low: 1e-4, high: 1e-3, {key}: x}}")),
        f"line 5: search.train.optimizer.lr = {{'low': 0.0001, 'high': 0.001, '{key}': 'x'}}: unknown key '{key}'",
    ) for key in ("no", "null", "1", "1.5", "2001-01-01", ".inf")},
    "a field that is a number": (minimal(train="{3: 1}"), "line 7: train.3 = 1: no such field; known: epochs"),
    "a field without a name": (minimal(train="{'': 1}"), "line 7: train.'' = 1: no such field; known: epochs"),
    "a search for a number": (
        minimal(search="{1: {low: 0, high: 1}}"),
        "line 5: search.1 = {'low': 0, 'high': 1}: no such field; known: model.arch",
    ),
    "a key that is a mapping": (minimal(train="{{a: b}: 1}"), "line 7: train: a key is text, not a list or a mapping"),
    "a key of 20,000 characters": (
        minimal() + f'? "{"k" * 20_000}"\n: 1\n',
        "line 7: file: the key kkkkkkkkkkkkkkkkkkkk... (20,000 characters) is longer than 200 characters",
    ),
    "a key that is a list": (minimal() + "? [a, b]\n: 3\n", "line 7: file: a key is text, not a list or a mapping"),
    "400 digits": (
        minimal(search=SEARCHED.format(f"{{low: 1, high: {'9' * 400}}}")),
        "line 5: search.train.optimizer.lr.high: 99999999999999999999... (400 characters) is no finite number",
    ),
    "400 digits below nothing": (
        minimal(attack=f"{{eps: -{'9' * 400}}}"), "line 7: attack.eps: -9999999999999999999... (401 characters) is no"
    ),
    "800 bits": (minimal(seed=f"0x{'f' * 200}"), "line 7: seed: 0xffffffffffffffffff... (202 characters) is no finite"),
    "a power beyond all floats": (minimal(attack="{eps: 1e400}"), "line 7: attack.eps: 1e400 is no finite number"),
    "not a number": (minimal(train="{ema: .nan}"), "line 7: train.ema: .nan is no finite number"),
    "400 digits of 255": (
        minimal(search=SEARCHED.format(f"{{low: 1, high: {'9' * 400}/255}}")),
        "high: a number or a fraction is needed, not '99999999999999999999999999999999999999999999999999999999...",
    ),
    "a thousand digits with strokes": (
        minimal(seed="1" + "_000" * 1000), "line 7: seed: 1_000_000_000_000_00... (4,001 characters) is no finite"
    ),
    "5,000 digits": (minimal(seed="7" * 5000), "line 7: seed: 77777777777777777777... (5,000 characters) is no int"),
    "beyond 64 bits": (minimal(seed=str(2**63)), "line 7: seed: 9223372036854775808 is no finite number, or a whole"),
    "infinite": (minimal(seed=".inf"), "line 7: seed: .inf is no finite number"),
    "a long text": (minimal(seed="a" * 20_000), "line 7: seed: aaaaaaaaaaaaaaaaaaaa... (20,000 characters) is longer"),
    "a date that there is not": (minimal(seed="2001-99-99"), "line 7: seed = '2001-99-99': Input should be"),
    **{f"a date or time, {text}": (
        minimal(train=f"{{optimizer: {{lr: {text}}}}}"),
        f"line 7: train.optimizer.lr = '{text}': Input should be a valid number",
    ) for text in ("2001-02-30", "2001-01-01", "0000-00-00", "2001-12-14T21:59:43Z", "12:30:45", "1:30")},
    "a tag of a date": (minimal(seed="!!timestamp 2001-99-99"), "line 7: seed: 'timestamp' is no kind of value here"),
    "a tag of 5,000 characters": (minimal(seed="!" * 5000), "line 7: seed: '!!!!!!!!!!!!!!!!!!!!... (4,99"),
    "a tag that would run code": (
        minimal(seed="!!python/object/apply:os.system [ls]"),
        "line 7: seed: 'python/object/apply:os.system' is no kind of value here",
    ),
    "a tag of another kind": (minimal(seed="!!binary aGk="), "line 7: seed: 'binary' is no kind of value here"),
    "an escape beyond Unicode": (minimal(seed='"\\UFFFFFFFF"'), "YAML: cannot be read"),
    "a control character": (minimal(seed="a\x00b"), "line 7: YAML: special characters are not allowed"),
    "an alias inside itself": (minimal(seed="&a [*a]"), "line 7: YAML: seed: an alias stands inside what it names"),
    "a mapping merged into itself": (minimal(seed="&a {<<: *a}"), "line 7: YAML: seed: an alias stands inside"),
    "two in one another": (minimal() + "a: &a {b: &b {c: *a}}\nd: *b\n", "line 7: YAML: a: an alias stands inside"),
    "an alias to nothing": (minimal(seed="*nobody"), "line 7: YAML: found undefined alias 'nobody'"),
    "mappings 800 deep": (minimal(seed="{a: " * 800 + "1" + "}" * 800), "line 7: YAML: nested more than 30 deep"),
    "dashes 500 deep": (minimal(seed="\n " + "- " * 500 + "1"), "line 8: YAML: nested more than 30 deep"),
    "keys 10,000 deep": (minimal() + "? " * 10_000, "line 7: YAML: nested more than 30 deep"),
    "100,000 brackets": (minimal(seed="[" * 100_000), "line 7: YAML: nested more than 30 deep"),
    "nested 800 deep": (minimal(seed="[" * 800 + "]" * 800), "line 7: YAML: nested more than 30 deep"),
    "an alias bomb": (minimal() + BOMB, "YAML: e: holds more than 10,000 values (an alias counts as often"),
    "a bomb of one level": (
        minimal() + f"a: &a [{'x, ' * 3000}]\nb: [*a, *a, *a, *a]\n", "YAML: b: holds more than 10,000 values"
    ),
    "10,000 keys": (minimal() + "".join(f"k{n}: 1\n" for n in range(10_000)), "YAML: holds more than 10,000 values"),
    "a bomb of merged keys": (minimal() + MERGED, "holds more than 10,000 values"),
    "100,000 values": (minimal(seed=f"[{'1,' * 100_000}]"), "line 7: YAML: holds more than 10,000 values"),
    "alternatives: a number": (minimal() + "alternatives: 5\n", "line 7: alternatives = 5: Input should be a"),
    **{f"alternatives: {value}": (minimal() + f"alternatives: {value}\n", f"line 7: {shown}: Input should be a valid")
       for value, shown in (("text", "alternatives = 'text'"), ("true", "alternatives = True"),
                            ("[5]", "alternatives.0 = 5"), ("[[]]", "alternatives.0 = []"),
                            ("[null]", "alternatives.0 = None"))},
    **{f"a step of {step}": (minimal(search=SEARCHED.format(f"{{low: 1e-4, high: 1, step: {step}}}")),
                             "makes more than 1,000,000 values between low and high; leave it out")
       for step in ("5e-324", "1e-7", "1/1e9")},
    "a step of a long way": (
        minimal(search="{train.epochs: {low: 1, high: 1000000000000, step: 2}}"), "step: 2 makes more than 1,000,000 va"
    ),
    "a step of next to nothing": (
        minimal(search=SEARCHED.format("{low: 0, high: 1, step: 1e-300}")), "step: 1e-300 makes more than 1,000,000"
    ),
    "half a step": (minimal(search="{train.epochs: {low: 1, high: 4, step: 1.5}}"), "step: the field is a whole"),
    "a step of words": (minimal(search="{train.epochs: {low: 1, high: 4, step: x}}"), "step: a number or a fraction"),
    "a step backwards": (minimal(search="{train.epochs: {low: 1, high: 4, step: -1}}"), "step: must be above 0 and at"),
    "a step beyond the range": (minimal(search="{train.epochs: {low: 1, high: 4, step: 9}}"), "at most high - low = 3"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "line"), CUT_SHORT.values(), ids=CUT_SHORT)
def test_what_yaml_or_a_range_cannot_be_is_one_line_at_once(text, line):
    begun = time.process_time()
    (found,) = problems_of(text)
    assert time.process_time() - begun < 1
    assert line in found
    assert len(found) < 1000, "nothing of 5,000 characters is repeated"


LENGTH = "is no length in the L-inf norm: pixels are in [0, 1], so write 4/255"


@pytest.mark.parametrize(
    ("block", "path"),
    [
        ({"evaluate": "{select: {attack: {eps: [4]}}}"}, "evaluate.select.attack.eps.0 = 4: 4"),
        ({"evaluate": "{select: {attack: {eps: [-1/255]}}}"}, "evaluate.select.attack.eps.0 = '-1/255': -0.00392157"),
        ({"evaluate": "{select: {attack: {eps: 4}}}"}, "evaluate.select.attack.eps = 4: 4"),
        ({"evaluate": "{select: {attack: {step_size: 2}}}"}, "evaluate.select.attack.step_size = 2: 2"),
        ({"evaluate": "{final: {attacks: [{attack: {name: pgd}, eps: [8]}]}}"}, "final.attacks.0.eps = [8]: 8"),
        ({"attack": "{eps: 300/255}"}, "attack.eps = '300/255': 1.17647"),
        ({"attack": "{step_size: 2}"}, "attack.step_size = 2: 2"),
        ({"search": "{attack.eps: {low: 1, high: 8}}"}, "search.attack.eps = 8.0: 8"),
        ({"search": "{attack.eps: {choices: [4, 8]}}"}, "search.attack.eps = 4: 4"),
        ({"search": "{attack.eps: {low: 1/255, high: 300/255}}"}, "search.attack.eps = 1.1764705882352942: 1.17647"),
        ({"evaluate": "{final: {attack: {eps: [1/255, 2.5]}}}"}, "evaluate.final.attack.eps.1 = 2.5: 2.5"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_length_in_grey_levels_is_answered_with_how_it_is_written(block, path):
    assert [f"{path} {LENGTH}" in line for line in problems_of(minimal(**block))][:1] == [True]


def test_a_length_in_grey_levels_is_refused_in_suites_and_compare_files_as_well(tmp_path: Path):
    suite = "name: s\ndatasets: [tiny-shapes]\nattacks: {{attack: {{name: pgd{}}}, eps: [{}]}}\n"
    places = {
        ("", "4"): "eps",
        ("", "1/255, 255"): "eps",
        (", step_size: 2", "1/255"): "step_size",
        ("", "true"): "eps.0",
    }
    for written, place in places.items():
        (tmp_path / "s.yaml").write_text(suite.format(*written))
        with pytest.raises(StudyFileError, match=rf"line 3: attacks\..*{place} = .*(L-inf norm|nor a fraction)"):
            load_suite(str(tmp_path / "s.yaml"))
    recipe = yaml.safe_load(Path("study/recipes/compare.yaml").read_text())
    for eps in (4, "-1/255", "300/255", True):
        with pytest.raises(StudyFileError, match=r"attack\.eps = .*: .*(L-inf norm|equal to 0|nor a fraction)"):
            parse_comparison(yaml.safe_dump({**recipe, "attack": {"eps": eps}}), source="compare.yaml")


def test_infinite_and_senseless_fractions_are_no_numbers():
    for text in ("nan", "inf", "1e300/1e-300", "4/0", "4/nan", "vier/255", "4/255/2", ""):
        (found,) = problems_of(minimal(attack=f"{{eps: '{text}'}}"))
        assert f"{text!r} is neither a number nor a fraction such as 4/255" in found
    for text in ("true", "false"):  # which Python counts as 1 and 0
        (found,) = problems_of(minimal(attack=f"{{eps: {text}}}"))
        assert f"{text} is neither a number nor a fraction such as 4/255" in found


def test_a_single_item_needs_no_brackets():
    plain = minimal(data="{train: tiny-color-shapes, dev: tiny-shapes, confirm: tiny-colors, final: tiny-letters}",
                    evaluate="{select: {attack: {eps: 6/255}}}", warm_starts="{method.scale_ratio: 0.5}",
                    promote="{gates: {sanity: {checks: deterministic}}}", alternatives="{name: tecoa}")  # fmt: skip
    listed = minimal(
        evaluate="{select: {attack: {eps: [6/255]}}}",
        warm_starts="[{method.scale_ratio: 0.5}]",
        alternatives="[{name: tecoa}]",
        promote="{gates: {sanity: {checks: [deterministic]}}}",
    )
    assert parse_study(plain, source="x") == parse_study(listed, source="x")
    (found,) = problems_of(plain.replace("tiny-letters", "tiny-leters"))
    assert "line 4: data.final = 'tiny-leters': no such dataset; did you mean 'tiny-letters'?" in found


def test_an_unknown_name_does_not_hide_what_else_is_wrong_with_its_block():
    found = problems_of(minimal(attack="{name: pgdd, eps: 300/255}"))
    assert ["attack.eps" in line or "attack.name" in line for line in found] == [True, True]
    found = problems_of(minimal(method="{name: agtf, scale_ratoi: 1, logit_scale: -1}"))
    for words in ("did you mean 'agft'?", "did you mean 'scale_ratio'?", "method.logit_scale"):
        assert any(words in line for line in found), words
    found = problems_of(minimal(evaluate="{final: {attacks: [{attack: {name: pdg, steps: -1}, eps: [8]}]}}"))
    assert len(found) == 3


@pytest.mark.parametrize(
    ("block", "meant"),
    [
        ({"search": "{train.lr: {low: 1e-4, high: 1e-3}}"}, "did you mean 'train.optimizer.lr'?"),
        ({"search": "{lr: {low: 1e-4, high: 1e-3}}"}, "did you mean 'train.optimizer.lr'?"),
        ({"search": "{optimizer.weight_decay: {low: 0, high: 0.1}}"}, "did you mean 'train.optimizer.weight_decay'?"),
        ({"train": "{lr: 1e-3}"}, "did you mean 'train.optimizer.lr'?"),
        ({"epochs": "3"}, "did you mean 'train.epochs'?"),
        ({"resources": "{trials: 3}"}, "did you mean 'budget.trials'?"),
        ({"search": "{warmup: {low: 0, high: 0.1}}"}, "did you mean 'train.warmup'?"),
        ({"search": "{attack.epsilon: {low: 1/255, high: 2/255}}"}, "did you mean 'attack.eps'?"),
        ({"search": "{train.optimizer.LR: {low: 1e-4, high: 1e-3}}"}, "did you mean 'train.optimizer.lr'?"),
        ({"search": "{scale_ratio: {low: 0.1, high: 1}}"}, "did you mean 'method.scale_ratio'?"),
        ({"data": "{train: pics/train, dev: [tiny-shapes], confirm: [tiny-colors], final: [tiny-letters]}"},
         "a folder of your own is written folder:pics/train"),
        ({"data": "{train: tiny-color-shapes, dev: [./pics/dev], confirm: [tiny-colors], final: [tiny-letters]}"},
         "a folder of your own is written folder:./pics/dev"),
        ({"data": "{train: tiny-color-shapes, dev: tiny-shapes, confirm: [tiny-colors], final: /data/final}"},
         "a folder of your own is written folder:/data/final"),
        ({"data": "{train: ../pics/train, dev: tiny-shapes, confirm: tiny-colors, final: tiny-letters}"},
         "a folder of your own is written folder:../pics/train"),
        ({"data": "{train: 'pics/my train', dev: tiny-shapes, confirm: tiny-colors, final: tiny-letters}"},
         "a folder of your own is written folder:pics/my train"),
        ({"data": "{train: ~/pics, dev: [tiny-shapes], confirm: [tiny-colors], final: [tiny-letters]}"},
         "a folder of your own is written folder:~/pics"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_was_meant_is_looked_for_in_the_whole_file(block, meant):
    (found,) = problems_of(minimal(**block))
    assert meant in found


@pytest.mark.parametrize(
    ("entry", "last"),
    [("{low: 1, high: 4, step: 2}", "3, not at 4"), ("{low: 2, high: 100, step: 33}", "68, not at 100"),
     ("{low: 1, high: 10, step: 3}", None), ("{low: 5, high: 9, step: 3}", "8, not at 9"),
     ("{low: 1, high: 100, step: 7}", "99, not at 100")],
)  # fmt: skip
def test_steps_that_miss_the_end_are_our_own_remark(entry, last):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec = parse_study(minimal(search=f"{{train.epochs: {entry}}}"), source="x")
        found = [line for line in remarks(spec) if line.startswith("search.train.epochs.step")]
    assert found == ([] if last is None else [f"search.train.epochs.step: steps of {entry[-3:-1].strip(' :')} from low "
                                              f"end at {last}"])  # fmt: skip


def test_steps_of_fractions_meet_their_end():
    spec = parse_study(minimal(search=SEARCHED.format("{low: 0.1, high: 0.7, step: 0.2}")), source="x")
    assert spec.dimensions()[0].distribution.high == 0.7
    assert not [line for line in remarks(spec) if "step" in line]
    for ends, last in (("low: 0, high: 1, step: 0.3", 0.9), ("low: 0.25, high: 2, step: 0.5", 1.75),
                       ("low: 1e-300, high: 1, step: 0.4", 0.8), ("low: 1/3, high: 1, step: 1/3", 1)):  # fmt: skip
        spec = parse_study(minimal(search=f"{{method.clean_weight: {{{ends}}}}}"), source="x")
        assert spec.dimensions()[0].distribution.high == pytest.approx(last), "an end without a point is a number, too"
        assert ["end at" in line for line in remarks(spec) if "step" in line] == ([] if last == 1 else [True])


def test_a_key_written_twice_or_taken_over_by_an_anchor_keeps_its_line():
    text = minimal() + "train: {<<: {epochs: 3, batch_size: 8}, epochs: 4}\n"
    assert parse_study(text, source="x").train.model_dump(include={"epochs", "batch_size"}) == {
        "epochs": 4, "batch_size": 8,
    }  # fmt: skip
    assert problems_of(minimal() + "seed: 1\nseed: 2\n") == ["line 8: seed: written twice; first on line 7"]


def test_what_is_no_regular_small_text_file_is_refused_at_once(tmp_path: Path):
    pipe, large, utf16, latin, linked = (tmp_path / f"{n}.yaml" for n in ("pipe", "large", "utf16", "latin", "linked"))
    os.mkfifo(pipe)
    linked.symlink_to(pipe)
    with large.open("wb") as file:
        file.truncate(100_000_000)
    (tmp_path / "over.yaml").write_bytes(b"#" * (MOST_BYTES + 1))
    utf16.write_bytes(minimal().encode("utf-16"))
    latin.write_bytes(minimal().encode() + b"# caf\xe9\n")
    words = {
        pipe: "not a regular file", linked: "not a regular file", Path("/dev/zero"): "not a regular file",
        Path("/dev/null"): "not a regular file", tmp_path: "Is a directory", tmp_path / "none.yaml": "No such file",
        large: "larger than 1 MB", tmp_path / "over.yaml": "larger than 1 MB", latin: "line 7 is not UTF-8 text",
        utf16: "line 1 is not UTF-8 text; it looks like UTF-16: save it as UTF-8",
        latin / "below.yaml": "Not a directory", tmp_path / ("a" * 300): "File name too long",
    }  # fmt: skip
    begun = time.process_time()
    for path, rule in words.items():
        readers = (
            load_study,
            load_comparison,
            load_policy,
            *([lambda path: load_suite(f"{path}")] * bool(path.suffix)),
        )
        for load in readers:
            with pytest.raises(UserError, match=re.escape(f"{path}: ") + ".*" + re.escape(rule)):
                load(path)
    assert time.process_time() - begun < 1
    mark = tmp_path / "mark.yaml"
    mark.write_bytes(b"\xef\xbb\xbf" + minimal().encode())
    assert load_study(mark).name == "small"
    (tmp_path / "full.yaml").write_bytes(b"#" * MOST_BYTES)
    assert len(read_text(tmp_path / "full.yaml")) == MOST_BYTES
