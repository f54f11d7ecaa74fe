"""What shells complete: verbs, the options and choices of each, and recipes."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from mrp.cli import main
from mrp.run import recipes


def script(capsys: pytest.CaptureFixture[str], shell: str) -> str:
    main(["completion", shell])
    return capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_what_can_come_next(capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        "pretr": {"pretrain"},
        "pretrain dem": {"demo"},
        "pretrain demo optim.lr=1e-3 --fol": {"--folder"},
        "pretrain --folder dem": set(),  # a folder: left to the shell's own completion of files
        "config mae_vit_huge_": {"mae_vit_huge_in1k"},
        "export --to ti": {"timm"},
        "shards bui": {"build"},
        "shards build --split te": {"test"},
        "shards show --wor": set(),  # an option of build
        "lab ratio comp": {"compare"},
        "lab ratio predict --leng": {"--length"},
        "lab maskgraph --leng": set(),
        "completion fi": {"fish"},
        "nonsense --fol": set(),
    }
    lines = [script(capsys, "bash")]
    for typed in cases:
        words = ["mrp", *typed.split()]
        lines.append(f"COMP_WORDS=({' '.join(words)}) COMP_CWORD={len(words) - 1}; _mrp; echo ${{COMPREPLY[*]}}")
    done = subprocess.run(["bash", "-u"], input="\n".join(lines), capture_output=True, text=True)
    assert done.stderr == ""
    assert dict(zip(cases, (set(line.split()) for line in done.stdout.splitlines()), strict=True)) == cases


def test_zsh_reads_the_script_of_bash(capsys: pytest.CaptureFixture[str]) -> None:
    text = script(capsys, "zsh")
    assert "bashcompinit" in text
    assert text.endswith("complete -o default -F _mrp mrp\n")
    if shutil.which("zsh"):
        subprocess.run(["zsh", "-n"], input=text, text=True, check=True)


def test_fish_is_told_of_every_verb_and_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    text = script(capsys, "fish")
    lines = text.splitlines()
    assert any(line.startswith("complete -c mrp -f -n __fish_use_subcommand -a pretrain -d ") for line in lines)
    (named,) = (
        line for line in lines if line.startswith("complete -c mrp -n '__fish_seen_subcommand_from pretrain' -a")
    )
    assert {path.stem for path in recipes().glob("*.yaml")} <= set(named.replace("'", " ").split())
    assert "complete -c mrp -n '__fish_seen_subcommand_from export' -l to -r -f -a 'timm" in text
    assert "-n '__fish_seen_subcommand_from shards; and __fish_seen_subcommand_from build' -l shard-size -r -d" in text
    ratio = "__fish_seen_subcommand_from lab; and __fish_seen_subcommand_from ratio"
    assert f"complete -c mrp -f -n '{ratio}; and not __fish_seen_subcommand_from predict compare' -a predict" in text
    if shutil.which("fish"):
        subprocess.run(["fish", "--no-execute"], input=text, text=True, check=True)
