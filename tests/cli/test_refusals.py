"""Command lines that are refused: one line on stderr that says what to do, and exit code 2."""

from typing import Any

import pytest
from console import Shell
from queue_steps import enter, evaluate_whole, kept_artifact, metric, submission, suite

from evalsvc.files.artifacts import keep_content
from evalsvc.miniature import ROOT

WEIGHTS = ROOT / "runs/random-init/checkpoints/epoch_5.pt"
PAIRS = f"{WEIGHTS} --pairs {ROOT / 'heldout_pairs.jsonl'}"
RUN = "run loss --checkpoint"
ITEM = {"index": 0, "nll": 1.5}


def again(names: str) -> str:
    return f"retry {names} --suite loss --yes"


@pytest.fixture(scope="module")
def filled(running: tuple[str, Any]) -> str:
    """The address of a service with one grid of run-a@5, two of run-a@10, and run-b@5 without values."""
    url, state = running
    folder = state.settings.artifacts_path
    enter(state.store, submission(5), suite())
    grid = kept_artifact(keep_content(folder, b"one"))
    evaluate_whole(state.store, metric(2.0), metric(1.0, "loss/image"), artifacts=[grid], items=[ITEM])
    enter(state.store, submission(10), suite(tasks=2))
    evaluate_whole(state.store, artifacts=[kept_artifact(keep_content(folder, b"two"))])
    enter(state.store, submission(5, run="run-b"))
    return url


REFUSED = [
    ("submit mine abc x.pt", ", found 'abc'"),
    ("runs --format yaml", "'--format': 'yaml' is not one of 'table', 'csv', 'json'"),
    ("sumbit", "Did you mean 'submit'"),
    ("--verbose metrics", "evalsvc --version --verbose"),
    ("worker tcp://127.0.0.1:8786", "must begin with tls://"),
    ("worker tls://127.0.0.1:8786", "an existing scheduler needs TLS; set --tls FOLDER (EVALSVC_TLS)"),
    (
        "worker tls://127.0.0.1:8786 --tls .",
        "--tls . (EVALSVC_TLS): there is no ca.pem, cert.pem, key.pem",
    ),
    ("serve --host 0.0.0.0 --port 0", "which has no tokens; create a token first"),
    ("serve --port 0 --suites nowhere", "does not exist; create it or change --suites"),
    ("assets pull inception movqgan-67M --from a.pt", "holds one asset, and 2 assets are named; name one asset"),
    ("tasks los", "did you mean 'loss'"),
    ("metrics captions/imaeg_mass", "did you mean 'image_mass'"),
    # suites
    ("suites new --task loss --set dat=pairs.jsonl", "no parameter is named 'dat'; did you mean 'data'?"),
    ("suites new --task loss --set limit", "--set limit: no value is given; write NAME=VALUE"),
    ("suites new --task loss --set 'limit=[4'", "--set limit=[4: the value is not valid YAML"),
    ("suites new --task loss --output no/suites/mine.yaml", "the folder no does not exist; create the folder first"),
    ("suites check los", "no suite is named 'los'; did you mean 'loss'"),
    ("suites put a.txt", "a.txt is not the file of a suite; give a file that ends in .yaml or .yml or .json"),
    ("suites put a.yaml", "a.yaml is not the file of a suite"),
    # checkpoints, runs and plans
    ("submit run-a -5 a.pt", "error: step -5 is not a step; give a whole number of at least 0 [invalid_request]"),
    ("submit run-a 25 a.pt --tag lr", "--tag lr has no `=`; write the tag as KEY=VALUE"),
    ("submit run-a 25 a.pt --model open_lm_1bb", "did you mean 'open_lm_1b'"),
    ("submit run-a 25 a.pt --model {", "--model is not JSON"),
    ("submit run-a 25 a.pt --layout nowhere.yaml", "nowhere.yaml does not exist or cannot be read"),
    ("submit run-a 25 s3://bucket/a.pt --upload", "--upload sends a file of this machine, and s3://bucket/a.pt is no"),
    ("submit run-a 25 'avg(a@1, a@2)' --upload", "leave --upload out"),
    (f"submit run-a 25 {ROOT / 'runs/pretrained'} --upload", "it is the folder of a run: post one of the files in"),
    ("submit run-a 25 nowhere.pt --upload", "--model"),
    ("checkpoints run-a@6", "no checkpoint is named 'run-a@6'; did you mean 'run-a@5'"),
    ("checkpoints 2 --state failed", "--state is given with 2, which is one checkpoint"),
    ("checkpoints run-a --result", "'run-a' is not a checkpoint; write RUN@STEP"),
    ("checkpoints run-a --suite quick", "--suite is given without --result"),
    ("runs run-c", "no run is named 'run-c'; did you mean 'run-b' or 'run-a'?"),
    ("runs run-a --base 25", "'25' is not a checkpoint; write RUN@STEP"),
    ("runs --base run-a@0", "--base is given without a run; leave --base out"),
    ("runs run-b --base run-b@0", "run-b"),
    ("delete run-b", "run run-b with 1 checkpoint would be deleted, and standard input is no terminal to ask for"),
    ("delete run-b@5", "checkpoint run-b@5 with 0 evaluations would be deleted, and standard input is no terminal"),
    ("suites delete loss", "the command would delete suite loss of the service"),
    ("plan run-a --when-behind newest", "--when-behind is given without suites and without --none; leave"),
    ("plan run-a loss --none", "--none is given with suites"),
    ("plan run-a loss --at-most 2", "without --when-behind refuse"),
    *((f"plan run-a {text}", "is no suite of a plan") for text in ("''", "loss/", "loss@5", "loss/-5", "loss/٥")),
    ("plan run-a loss/0", "an EVERY of at least 1"),
    ("plan run-a loss@9..5", "a LAST not below FIRST"),
    ("plan run-a loss/9999999999999999", "steps up to 9007199254740991"),
    (f"plan run-a loss/{'9' * 5000}", "is no suite of a plan"),
    ("watch checkpoints --run run-a --marker done", "has no {} for the name of the checkpoint"),
    ("watch nowhere --run run-a --once", "nowhere is no folder"),
    ("watch . --run run-a --once --url http://127.0.0.1:9", "no evaluation service answers at http://127.0.0.1:9"),
    ("watch s3://bucket/run --run run-a --marker {}.done", "leave --marker out"),  # it would be looked for in vain
    # evaluations
    ("evaluations --state broken", "'partly_failed'"),
    ("evaluations 9", "there is no evaluation 9"),
    ("evaluations 1 2", "1 2 are several names; give one, or ids of evaluations with --wait"),
    ("evaluations run-a --wait", "--wait is given without the id of an evaluation"),
    ("evaluations 1 --state failed", "--state is given with 1, which is one evaluation"),
    ("cancel 0", "greater than or equal to 1"),
    ("retry run-a", "'run-a' is not the id of an evaluation; give an id"),
    ("retry 1 --missing", "--missing is given without --suite; leave --missing out"),
    ("retry run-a --suite los --yes", "no suite is named 'los'; did you mean 'loss'?"),
    (again("run-a@5..1"), "'run-a@5..1' has 5..1; give a last step that is not below the first"),
    (again("run-a@1..5/0"), "'run-a@1..5/0' has /0; give a last step"),
    *((again(name), "names no checkpoints; give RUN@A..B") for name in ("../run-a", "@5", "run-a@5..", "run-a@5/2")),
    (again("run-a@6..9"), "no checkpoint matches run-a@6..9; evalsvc checkpoints run-a shows the steps"),
    (again("run-c"), "no run is named 'run-c'; did you mean 'run-b' or 'run-a'?"),
    (again("run-a@9999999999999999999"), "error: "),
    ("items 1 --column nl", "did you mean 'nll'"),
    # artifacts
    ("artifacts get 9", "there is no artifact 9; evalsvc artifacts list RUN lists"),
    ("artifacts get 1 --output no/a.png", "--output no/a.png: the folder no does not exist"),
    ("artifacts get 1 --output .", ". cannot be written"),
    ("artifacts get 0", "input should be greater than or equal to 1, found '0'"),
    ("artifacts get 1 --task loss-0", "--task is given with 1, which is one artifact; leave --task out"),
    ("artifacts get run-a@10", "has grids of the tasks loss-0, loss-1; name a task"),
    ("artifacts get run-a@10 --task loss-2", "did you mean 'loss-1'"),
    ("artifacts get run-b@5", "run-b@5 has no image grid; evaluate the checkpoint with a suite that has a task of"),
    ("artifacts keep", "no run is given; name the run of the rule, or give --prune to prune all runs"),
    ("artifacts keep run-a --prune --last 2", "set the rule first, then give --prune alone"),
    ("artifacts keep run-a --dry-run", "--dry-run is given without --prune"),
    ("artifacts keep run-a --default --last 3", "give --default alone"),
    # histories, comparisons and protocols
    ("history run-a --from 20 --to 10", "--from 20 is greater than --to 10; swap the two"),
    ("history run-a --points 3 --last 2", "--points shows one run, and several runs, --against or --last is given"),
    ("history run-a --points 0", "'--points': Input should be greater than or equal to 1"),
    (f"history run-a --points {'9' * 20}", "'--points': Input should be less than or equal to 10000"),
    ("history run-a --last 0", "'--last': Input should be greater than or equal to 1, found '0'"),
    ("history run-a --from -5", "'--from': Input should be greater than or equal to 0"),
    (f"history run-a --to {'9' * 30}", "to: input should be"),
    ("history run-a --metric loss/imag", "did you mean 'loss/image'"),
    ("history run-a --against loss/txt", "did you mean 'loss/text'"),
    ("history run-a --newest --last 1", "--last is given with --newest"),
    ("history run-a --output no/table.txt", "--output no/table.txt: the folder no does not exist"),
    ("compare before.json", "before.json has nothing to be compared with; give a second checkpoint or file as B, or"),
    ("compare run-a@0", "run-a@0 has nothing to be compared with; give a second checkpoint"),
    ("compare run-a run-b --family holm", "leave --family out, or give --band simultaneous"),
    ("plot run-a --metric loss/txt", "no metric is named 'loss/txt'; did you mean 'loss/text'"),
    ("plot run-a --theme dark", "--theme is for files; give --output"),
    ("plot run-a --output plot.jpg", "does not end in .svg, .png or .pdf"),
    ("plot run-a --output nowhere/plot.svg", "the folder nowhere does not exist"),
    ("plot run-a run-b --against run-a --metric loss/text", "--against is for one run"),
    ("plot run-a --against run-b --scale log --metric loss/text", "--against is for one run"),
    (f"plot {' '.join(f'run-{i}' for i in range(9))}", "9 runs are given, and a plot has colours for 8"),
    ("plot run-b", "run run-b has no values yet"),
    ("protocol run-a@5 --metric loss/txt", "did you mean 'loss/text'"),
    ("protocol 0123456789abcdef --metric loss/text", "leave --metric out"),
    # on this machine
    (f"{RUN} avg({'a' * 300}.pt)", "file name too long"),
    (f"{RUN} 'avg(run@5, a.pt)'", "run@5 names a checkpoint of the service, and this command reads files"),
    (f"{RUN} 'avg(base)'", "base, which is not given; name its weights by --base"),
    (f"{RUN} 'avg(base)' --base 'avg({WEIGHTS})'", "base, which is an expression; write the expression out"),
    (f"{RUN} {WEIGHTS} --output no/r.json", "the folder no does not exist; create the folder first"),
    (f"{RUN} {WEIGHTS} --base nowhere.pt", "nowhere.pt: no such file"),
    (f"{RUN} {WEIGHTS} --base-model a", "--base-model is given without --base"),
    ("gate a.pt --baseline b.pt --rules nowhere.yaml", "the file of --rules nowhere.yaml cannot be read: no such file"),
    ("gate a.pt --baseline b.pt --junit no/r.xml", "--junit no/r.xml: the folder no does not exist; create the folder"),
    ("gate a.pt --baseline b.pt --across-seeds --until decided", "samples both sides with one seed; leave the option"),
    ("gate a.pt --baseline b.pt --across-sampling --until decided", "--across-sampling is given with --until decided"),
    ("score samples --step 5", "--step is given without --run; leave --step out"),
    ("score samples --run flow", "--run is given without --step; give the training step of the images"),
    (
        "score samples --run flow --step 5 --reference real",
        "--reference is given with --run, where the service measures",
    ),
    ("score samples --suite loss", "suite loss has no task of kind images; name one that has: --suite images"),
    ("score samples --suite a --suite b", "--suite is given several times without --run"),
    ("score samples.zip --run flow --step 5", "there is no file of images samples.zip; give a path of this machine"),
    ("score samples --output no/r.json", "the folder no does not exist; create the folder first"),
    ("gate a.pt --baseline b.pt --device cpu", "is given without --until decided; leave the option out"),
    ("gate run-a@5 --baseline b.pt --until decided", "run-a@5 names a checkpoint of the service, and --until decided"),
    (f"gate {WEIGHTS} --baseline {WEIGHTS} --until decided", "is given without --suite; name the suite that evaluates"),
    ("layout a.pt --pairs nowhere.jsonl", "a.pt"),
    (f"layout {WEIGHTS} --pairs nowhere.jsonl", "nowhere.jsonl"),
    (f"layout {PAIRS} --output no/where.yaml", "--output no/where.yaml: the folder no does not exist"),
    (f"layout {PAIRS} --layout image-then-specail", "did you mean 'image-then-special' or"),
    ("verify machine --output no/where.json", "--output no/where.json: the folder no does not exist"),
    ("verify machine --output findings.txt", "--output findings.txt does not end in .json"),
    ("verify machine --threads 0", "--threads"),
    ("verify machine --suite loss", "--suite is given with machine; leave --suite out"),
    ("verify machine --device cuda:99", "--device: there is no device 'cuda:99'"),
    ("verify mine@3 --checkpoint a.pt", "verify needs either RUN@STEP or --checkpoint FILE, and both are given"),
    ("verify --suite loss", "verify needs either RUN@STEP or --checkpoint FILE, and neither is given"),
    ("verify --checkpoint a.pt", "--checkpoint is given without --suite; name the suite"),
    (f"verify --checkpoint {WEIGHTS} --suite miniature --engine model=openlm", "open_lm"),
]


@pytest.mark.parametrize(("line", "words"), REFUSED, ids=lambda value: value[:60])
def test_a_refusal_says_what_to_do(
    evalsvc: Shell, filled: str, monkeypatch: pytest.MonkeyPatch, line: str, words: str
) -> None:
    monkeypatch.setenv("EVALSVC_URL", filled)
    refused = evalsvc(line)
    assert (refused.code, refused.out) == (2, "")
    assert words in " ".join(refused.err.replace("│", " ").split()), refused.err
    assert not any(word in refused.err for word in ("Traceback", "Value error"))
