"""Study files, command lines, checkpoints and pictures by the thousand, made by a grammar: does any give a traceback?

    python tests/bench/fuzz.py        # 20,000 study files, 5,000 command lines, 2,000 damaged files of both kinds
    python tests/bench/fuzz.py --commands 0 --checkpoints 0 --pictures 0 --study 5000 --seed 1

Every input must be accepted or answered by one of our messages. Each kind has a process of its own, with a home, a
working folder and limits: nothing is started, nothing is connected to, and nothing is written outside its folder.
Exit code 1 if anything raised, took longer than SLOW_SECONDS or more than MEMORY_BYTES above what the imports take.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

COUNTS = {"study": 20_000, "commands": 5_000, "checkpoints": 2_000, "pictures": 2_000}
SLOW_SECONDS, HANG_SECONDS, MEMORY_BYTES = 2.0, 60, 500e6
SHOWN = 5  # failures
WARM = 20  # inputs until everything is imported that answers need

ODD = st.sampled_from([
    "", "~", "[]", "{}", "yes", "no", "-1", "0", "1", "2", "1.5", "1e-3", "4e400", ".inf", "-.inf", ".nan", "9" * 30,
    "9" * 5000, "4/255", "4/0", "300/255", "nan", "0x1F", "010", "1:30:00", "2001-02-03", "2001-99-99", "'1'",
    '"\\UFFFFFFFF"', "a: b", "*a", "&a [*a]", "&a 3", "<<: 3", "!!binary aGk=", "!!python/name:os.system",
    "!!set {a}", "[1, [2, [3]]]", "{a: {b: {c: 1}}}", "{of_eps: 1}", "{of_model: {low: 0.5, high: 2}}",
    "{low: 1, high: 0}", "{low: 0, high: 1, step: 1e-300}", "{low: 1, high: 4, step: 2}",
    "{low: 1e-3, high: 1, log: true}", "{low: 1, high: 9, log: maybe}", "{choices: []}", "{choices: [1, 2, a]}",
    "{choices: [[1], {a: 1}]}", "{choices: 3}", "{steps: {low: 1, high: 5}}", "pgd", "pgdd", "agft", "tecoa",
    "tga-zsr", "tiny-shapes", "tiny-shape", "pics/train", "folder:pics", "folder:", "~/x", "s3://b/k", "hf-hub:a/b",
    "local-dir:", "w.safetensors", "openai", "bundled", "ViT-B-32", "RN50-quickgelu", "linf", "l2", "grid", "cmaes",
    "nsga2", "median", "'>= clip - 0.1'", "'>= 1.5'", "[robust_accuracy, clean_accuracy]", "\u202e\u0000",
    "\ud7ff\u4e2d\u6587", "a" * 300, "[" * 40 + "]" * 40,
])  # fmt: skip
KEYS = ("low", "high", "log", "step", "choices", "when", "of_eps", "name", "eps")
PLAIN = st.one_of(st.integers(0, 9).map(str), st.floats(0, 1).map(repr), st.sampled_from(["true", "4/255", "null"]))
VALUES = st.one_of(
    PLAIN, PLAIN, PLAIN, ODD, ODD, st.integers(-(10**20), 10**20).map(str), st.floats(width=64).map(str),
    st.text(max_size=12),
    st.lists(ODD, max_size=4).map(lambda items: f"[{', '.join(items)}]"),
    st.dictionaries(st.sampled_from(KEYS), ODD, max_size=4)
    .map(lambda items: "{" + ", ".join(f"{key}: {value}" for key, value in items.items()) + "}"),
)  # fmt: skip


class Slow(BaseException):
    """An input has had HANG_SECONDS."""


def guarded(scratch: Path) -> None:
    """From now on nothing starts, connects or is written outside `scratch`: it raises an error of a service."""
    from infra.errors import ServiceError

    allowed = (str(scratch), "/dev/", "/proc/self/")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.exec", "os.system", "socket.connect",
                     "socket.bind", "socket.getaddrinfo", "os.kill", "os.killpg"):  # fmt: skip
            raise ServiceError(f"fuzzing: {event} is not allowed")
        if event == "open" and isinstance(arguments[0], str | bytes) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if not path.startswith(allowed) and not path.endswith((".pyc", ".lock")) and "__pycache__" not in path:
                raise ServiceError(f"fuzzing: {path} is not written")

    sys.addaudithook(hook)


# --- study files -----------------------------------------------------------------------------------------------------


def study_files() -> tuple[st.SearchStrategy[str], Callable[[str], bool]]:
    """Texts, and what says whether one was accepted."""
    from study.errors import StudyFileError
    from study.plan.cost import study_passes
    from study.plan.study import remarks
    from study.spec.config import StudyConfig, load_canonical
    from study.spec.files import parse_study
    from study.spec.reader import field_paths
    from study.spec.space import known_paths
    from tests.support.study_files import MINIMAL, TRAINED, text_of

    raw = {"method": {"name": "agft"}, "attack": {"name": "pgd"}, "sampler": {}, "scheduler": {}}
    fields = st.sampled_from(sorted(field_paths(StudyConfig, raw)))
    searched = st.sampled_from(sorted(known_paths("agft")))
    names = st.one_of(fields, fields, searched.map(lambda path: f"search:{path}"), st.text(max_size=8))
    edits = st.lists(st.tuples(names, VALUES), min_size=1, max_size=4)
    cuts = st.lists(st.tuples(st.integers(0, 2000), st.sampled_from([*"{}[]:,&*!|>'\"#-\n\t ?%@`\\0", ""])), max_size=2)

    def text(base: dict[str, str], changes: list[tuple[str, str]], marks: list[tuple[int, str]]) -> str:
        blocks = dict(base)
        for path, value in changes:
            if path.startswith("search:"):
                blocks["search"] = f"{{{path[7:]}: {value}}}"
            else:
                head, *rest = path.split(".")
                blocks[head] = "".join(f"{{{name}: " for name in rest) + value + "}" * len(rest)
        found = text_of(blocks)
        for place, mark in marks:
            place %= len(found) + 1
            found = found[:place] + mark + found[place + 1 :]
        return found

    def check(found: str) -> bool:
        try:
            spec = parse_study(found, source="study.yaml")
        except StudyFileError as error:
            if not error.problems or not all(problem.rule and problem.line > 0 for problem in error.problems):
                raise AssertionError(f"says too little: {error}") from error
            return False
        remarks(spec)
        study_passes(spec)
        assert load_canonical(spec.canonical()) == spec
        return True

    ranges = st.tuples(PLAIN, PLAIN, PLAIN).map(lambda each: "{{low: {}, high: {}, step: {}}}".format(*each))
    choices = st.lists(PLAIN, min_size=1, max_size=3).map(lambda items: f"{{choices: [{', '.join(items)}]}}")
    likely = st.tuples(searched.map(lambda path: f"search:{path}"), st.one_of(ranges, choices))
    whole = st.sampled_from([MINIMAL, TRAINED])
    plausible = st.lists(st.one_of(likely, st.tuples(fields, PLAIN)), min_size=1, max_size=2)
    return st.one_of(st.builds(text, whole, plausible, st.just([])), st.builds(text, whole, edits, cuts)), check


# --- command lines ---------------------------------------------------------------------------------------------------

WORDS = st.sampled_from([
    "", "x", "-1", "0", "1", "3", "1e9", "nan", "inf", "4/255", "4", "a" * 300, "no-such", "none.yaml", "bad.yaml",
    "dir", "pipe", "empty.pt", "page.pt", "pointer.safetensors", "/dev/null", "/dev/zero", "~nobody/x", "s3://",
    "s3://b", "s3://b/k", "s3://u:p@b/k", "models:/", "models:/x@y", "models:/x/999999999999999999999", "tiny-clip",
    "tiny-clip:none.pt", "tiny-clip:empty.pt", "ViT-B-32:page.pt", "a:b:c", "folder:", "folder:dir", "folder:pipe",
    "tiny-digits", "tiny-digit", "cifar10", "http://", "http://127.0.0.1:1", "host:port", "0.5,0.6", "1,2,3",
    "\u202e", "\udcff", "a\nb", "*", "$(x)", "[bold]", "--", "-", "--help", "--json", "%s", "{}", "study/../..", ".",
    "..", "/", "good.yaml", "small", "small/0", "pics", "folder:pics", "w.safetensors", "tiny-clip:w.safetensors",
    "tiny-color-shapes", "new/mine.yaml", "out", "train.optimizer.lr", "method.agft.scale_ratio", "suite.attacks",
    "train.lr", "..", "mine@champion", "mine@3", "key.pem",
])  # fmt: skip


def command_lines() -> tuple[st.SearchStrategy[list[str]], Callable[[list[str]], bool]]:
    """Argument lists, and what says whether one was accepted."""
    import click
    from click.testing import CliRunner

    from study.cli.main import main

    def leaves(group: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
        if isinstance(group, click.Group):
            for name in group.commands:
                yield from leaves(group.commands[name], (*path, name))
        else:
            yield path, group

    def words(each: click.Parameter) -> st.SearchStrategy[list[str]]:
        """A parameter as somebody writes it who has read the help, or nearly."""
        if isinstance(each, click.Option) and each.is_flag:
            return st.sampled_from([*each.opts, *each.secondary_opts]).map(lambda name: [name])
        known = st.sampled_from(list(each.type.choices)) if isinstance(each.type, click.Choice) else WORDS
        value = st.one_of(known, known, WORDS)
        if isinstance(each, click.Option):
            return st.tuples(st.sampled_from(each.opts), value).map(list)
        return value.map(lambda word: [word])

    lines = []
    for path, command in leaves(main, ()):
        given = [each for each in command.params if isinstance(each, click.Argument)]
        # `logs -f` waits for a study's end, `status --watch` for Ctrl-C, and that is right
        options = [each for each in command.params if isinstance(each, click.Option)
                   and not {"-f", "--watch"} & {*each.opts}]  # fmt: skip
        names = st.sampled_from([name for each in options for name in each.opts] or ["-x"])
        likely = st.tuples(*map(words, given), *([st.lists(st.one_of(*map(words, options)), max_size=3).map(
            lambda found: [word for each in found for word in each])] if options else []))  # fmt: skip
        no_zero = st.text(st.characters(exclude_characters="\0"), max_size=6)  # no system hands one over in an argument
        wild = st.lists(st.one_of(WORDS, names, no_zero), max_size=6)
        whole = st.one_of(likely.map(lambda found: [word for each in found for word in each]), wild)
        lines.append(whole.map(lambda rest, path=path: [*path, *rest]))  # type: ignore[misc]
    lines.append(st.lists(WORDS, max_size=4))
    runner = CliRunner()

    def check(line: list[str]) -> bool:
        done = runner.invoke(main, line)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code in (0, 1, 2), done.exit_code
        assert "Traceback (most recent call last)" not in done.output, done.output[-800:]
        assert done.exit_code == 0 or done.output.strip(), "no message"
        return bool(done.exit_code == 0)

    return st.one_of(lines), check


def odd_files(folder: Path) -> None:
    """What the words of command lines name: most of it is none of what it is called."""
    from study.spec.files import parse_study
    from study.store.store import StudyStore
    from tests.support.pictures import folder_of
    from tests.support.study_files import minimal
    from trainers.model import bundled

    (folder / "dir" / "class").mkdir(parents=True)
    os.mkfifo(folder / "pipe")
    (folder / "bad.yaml").write_text("name: [\n")
    (folder / "empty.pt").touch()
    (folder / "page.pt").write_text("<html>")
    (folder / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 3\n")
    (folder / "key.pem").write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    (folder / "good.yaml").write_text(minimal())
    (folder / "w.safetensors").symlink_to(bundled.weights_path())
    folder_of(folder / "pics", 30)
    (folder / "home").mkdir()
    StudyStore(f"sqlite:///{folder}/home/studies.db", "small").create(parse_study(minimal(), source="good.yaml"))


# --- checkpoints -----------------------------------------------------------------------------------------------------


def checkpoints() -> tuple[st.SearchStrategy[tuple[str, bytes]], Callable[[tuple[str, bytes]], bool]]:
    """Damaged files by the name of what they were, and what says whether one was accepted."""
    import open_clip
    import torch
    from safetensors.torch import save

    from tests.support.official import CONFIGS, agft_file, openai_vit, tecoa_file, toy_architectures, toy_clip
    from trainers.errors import UserError
    from trainers.model.importing import import_checkpoint
    from trainers.model.pretrained import check_file, load_clip
    from trainers.model.weights import save_weights
    from trainers.schema.training import ModelConfig

    folder = Path("models")
    folder.mkdir()
    arch = "toy-vit-quickgelu"
    toy_architectures(folder).__enter__()
    assert arch in CONFIGS
    assert arch in open_clip.list_models()
    clip = toy_clip(arch)
    state = clip.state_dict()
    save_weights(folder / "ours.safetensors", clip)
    (folder / "plain.safetensors").write_bytes(save({name: value.contiguous() for name, value in state.items()}))
    torch.save({"state_dict": state, "epoch": 3}, folder / "zip.pt")
    torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)
    agft_file(folder / "agft.pth", openai_vit())
    tecoa_file(folder / "tecoa.pth.tar", openai_vit())
    torch.jit.trace_module(clip, {"encode_image": torch.zeros(1, 3, 32, 32)}, check_trace=False).save(folder / "jit.pt")
    whole = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".json"}

    def damaged(name: str, seed: int, kind: str) -> tuple[str, bytes]:
        draw, content = random.Random(seed), bytearray(whole[name])
        region = min(len(content), draw.choice([64, 2_000, len(content)]))  # headers and pickles are at the beginning,
        start = draw.choice([0, len(content) - region])  # and a zip's directory at the end
        if kind == "cut":
            del content[draw.randrange(len(content)) :]
        elif kind == "flip":
            for _ in range(draw.choice([1, 4, 64])):
                content[start + draw.randrange(region)] = draw.randrange(256)
        elif kind == "drop":
            place = start + draw.randrange(region)
            del content[place : place + draw.choice([1, 8, 500])]
        elif kind == "insert":
            place = start + draw.randrange(region)
            content[place:place] = draw.randbytes(draw.choice([1, 8, 500]))
        elif kind == "swap":
            other = whole[draw.choice(list(whole))]
            place = draw.randrange(len(content))
            content[place:] = other[draw.randrange(len(other)) :]
        else:
            content = bytearray(draw.randbytes(draw.choice([1, 100, 5_000])))
        return name, bytes(content)

    def check(found: tuple[str, bytes]) -> bool:
        name, content = found
        path = folder / name
        path.write_bytes(content)
        accepted = True
        config = ModelConfig(arch=arch, pretrained=str(path))
        for use in (lambda: check_file(config), lambda: load_clip(config), lambda: import_checkpoint(path, arch)):
            try:
                use()
            except UserError as error:
                if name not in str(error) and "--base" not in str(error):
                    raise AssertionError(f"does not name the file: {error}") from error
                accepted = False
        return accepted

    kinds = st.sampled_from(["cut", "flip", "drop", "insert", "swap", "noise"])
    return st.builds(damaged, st.sampled_from(sorted(whole)), st.integers(0, 2**32), kinds), check


# --- pictures --------------------------------------------------------------------------------------------------------


def pictures() -> tuple[st.SearchStrategy[tuple[str, bytes]], Callable[[tuple[str, bytes]], bool]]:
    """Suffixes and what a file holds, and what says whether it was read."""
    from tests.support.damage import damaged_pictures
    from trainers.data.prepared.decode import decode, fault
    from trainers.errors import UserError

    def check(found: tuple[str, bytes]) -> bool:
        suffix, content = found
        file = Path(f"x{suffix}")
        file.write_bytes(content)
        said = fault(file, whole=False)
        try:
            decode(file, "224", 224)
        except UserError as error:
            if not str(error).startswith(f"{file}: not a readable image ("):
                raise AssertionError(f"says too little: {error}") from error
            return False
        assert said is None, f"read, though {said}"
        return True

    return damaged_pictures(), check


KINDS: dict[str, Callable[[], tuple[st.SearchStrategy[Any], Callable[[Any], bool]]]] = {
    "study": study_files, "commands": command_lines, "checkpoints": checkpoints, "pictures": pictures,
}  # fmt: skip


def run(kind: str, count: int, number: int) -> dict[str, Any]:
    """Of so many inputs by seed `number`: how they were answered, the slowest, memory above the start, what raised."""
    inputs, check = KINDS[kind]()
    tally: Counter[str] = Counter()
    failures: dict[str, str] = {}
    slowest = (0.0, "")

    def ring(*_: object) -> None:
        raise Slow(f"more than {HANG_SECONDS} s")

    signal.signal(signal.SIGALRM, ring)
    start = 0

    @seed(number)
    @settings(max_examples=count, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(inputs)
    def one(value: Any) -> None:
        nonlocal slowest, start
        if sum(tally.values()) >= count:
            return
        if sum(tally.values()) == WARM:
            start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.process_time()  # of this process: the machine may be busy with others
        signal.alarm(HANG_SECONDS)
        try:
            tally["accepted" if check(value) else "refused"] += 1
        except (Exception, Slow) as error:
            tally["raised"] += 1
            place = traceback.extract_tb(error.__traceback__)[-1]
            key = f"{type(error).__name__} at {place.filename}:{place.lineno}"
            failures.setdefault(key, f"{key}: {str(error)[:300]}\n    of {str(value)[:600]!r}")
        finally:
            signal.alarm(0)
        slowest = max(slowest, (time.process_time() - began, str(value)[:200]))

    one()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) * 1024
    return {"kind": kind, "count": sum(tally.values()), **tally, "slowest_seconds": slowest[0], "slowest": slowest[1],
            "memory_bytes": grown, "failures": list(failures.values())}  # fmt: skip


def child(kind: str, count: int, number: int) -> None:
    """One kind, in this process."""
    scratch = Path.cwd()
    if kind == "commands":
        odd_files(scratch)  # what a command imports is not its answer's time
        import mlflow
        import open_clip
        import ray
        import torch

        assert all((mlflow, open_clip, ray, torch))
        from study.cli import here

        assert here
        guarded(scratch)
    Path("result.json").write_text(json.dumps(run(kind, count, number)))


def main() -> int:
    """Print a line a kind; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind, count in COUNTS.items():
        parser.add_argument(f"--{kind}", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0, help="other inputs")
    parser.add_argument("--child", choices=list(KINDS))
    asked = parser.parse_args()
    if asked.child:
        child(asked.child, getattr(asked, asked.child), asked.seed)
        return 0
    bad = False
    root = Path(__file__).parents[2]
    for kind in KINDS:
        if not (count := getattr(asked, kind)):
            continue
        folder = Path(tempfile.mkdtemp(prefix="agft-fuzz-"))
        own = {"HOME": "", "TMPDIR": "", "AGFT_HOME": "home", "AGFT_CACHE": "cache", "AGFT_DATA": "data"}
        environ = {name: str(folder / below) for name, below in own.items()}
        environ |= {"PATH": os.environ["PATH"], "PYTHONPATH": str(root), "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1",
                    "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}  # fmt: skip
        began = time.monotonic()
        command = [sys.executable, __file__, "--child", kind, f"--{kind}", str(count), "--seed", str(asked.seed)]
        done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            print(f"{kind}: died with {done.returncode}\n{done.stderr[-3000:]}")
            return 1
        found = json.loads((folder / "result.json").read_text())
        shutil.rmtree(folder, ignore_errors=True)
        answers = {name: found.get(name, 0) for name in ("accepted", "refused", "raised")}
        print(f"{kind:<12} {found['count']:>6,} inputs: {', '.join(f'{n:,} {name}' for name, n in answers.items())}; "
              f"slowest {found['slowest_seconds']:.2f} s, memory {found['memory_bytes'] / 1e6:+.0f} MB, "
              f"{time.monotonic() - began:.0f} s in all", flush=True)  # fmt: skip
        for failure in found["failures"][:SHOWN]:
            print(f"  {failure}")
        slow = found["slowest_seconds"] > SLOW_SECONDS
        if slow:
            print(f"  slow: {found['slowest']!r}")
        bad = bad or bool(found["failures"]) or slow or found["memory_bytes"] > MEMORY_BYTES
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
