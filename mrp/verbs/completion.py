"""`mrp completion`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mrp import verbs

HELP = "print a script with which a shell (bash, zsh or fish) completes verbs, options and recipes"
EXAMPLE = "mrp completion bash"

_BASH = """\
# eval "$(mrp completion {shell})" in the file that the shell reads at its start
{before}_mrp() {{
    local words= current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD - 1]}} verb= word
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD - 1}}"; do
        case "$verb/$word" in
            {nested}) verb="$verb $word" ;;
            *) verb=${{verb:-/$word}}; break ;;
        esac
    done
    verb=${{verb# }}
    case "$verb" in
{cases}
    esac
    case "$verb $previous" in
{values}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _mrp mrp
"""
_ZSH = "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n"


@dataclass(frozen=True)
class _Command:
    """A verb, or an action of a verb, and what may follow it."""

    words: str  # as they are typed after `mrp`
    help: str
    options: tuple[argparse.Action, ...]
    actions: tuple[str, ...]
    choices: tuple[str, ...]  # words without a flag, actions among them
    takes_recipe: bool


def words(parser: argparse.ArgumentParser) -> None:
    """Adds a shell."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell")


def run(options: argparse.Namespace) -> None:
    """Prints the script."""
    from mrp.run import recipes

    commands = list(_commands())
    names = sorted(path.stem for path in recipes().glob("*.yaml"))
    print(_fish(commands, names) if options.shell == "fish" else _bash(commands, names, options.shell), end="")


def _commands() -> Iterator[_Command]:
    """Yields every verb and every action, as their parsers describe them."""
    for name in verbs.names():
        verb = verbs.find(name)
        parser = argparse.ArgumentParser(add_help=False)
        verbs.describe(name, parser)
        yield from _described(name, verb.HELP, parser)


def _described(words: str, text: str, parser: argparse.ArgumentParser) -> Iterator[_Command]:
    actions = parser._actions
    nested = next((action for action in actions if isinstance(action, argparse._SubParsersAction)), None)
    options = tuple(action for action in actions if action.option_strings and action.dest != "help")
    below: dict[str, argparse.ArgumentParser] = dict(nested.choices) if nested else {}
    choices = tuple(str(choice) for action in actions if not action.option_strings for choice in action.choices or ())
    yield _Command(words, text, options, tuple(below), choices, any(action.dest == "recipe" for action in actions))
    for name, parser_below in below.items():
        texts = {choice.dest: choice.help or "" for choice in nested._choices_actions} if nested else {}
        yield from _described(f"{words} {name}", texts.get(name, ""), parser_below)


def _bash(commands: list[_Command], recipes: list[str], shell: str) -> str:
    cases: list[tuple[str, Iterable[object]]] = [
        ("", [command.words for command in commands if " " not in command.words])
    ]
    values: list[tuple[str, Iterable[object]]] = []
    for command in commands:
        flags = [flag for option in command.options for flag in option.option_strings]
        cases.append((command.words, [*command.choices, *flags, *(recipes if command.takes_recipe else [])]))
        for option in command.options:
            if option.nargs != 0:  # a flag that takes a value: its choices, or else a file
                values += [(f"{command.words} {flag}", option.choices or ()) for flag in option.option_strings]

    def lines(pairs: Sequence[tuple[str, Iterable[object]]]) -> str:
        return "\n".join(f"        '{pattern}') words='{' '.join(map(str, found))}' ;;" for pattern, found in pairs)

    nested = "|".join(f"' {above}/{name}'" if above else f"'/{name}'" for above, name in map(_parted, commands))
    before = _ZSH if shell == "zsh" else ""
    return _BASH.format(shell=shell, before=before, nested=nested, cases=lines(cases), values=lines(values))


def _fish(commands: list[_Command], recipes: list[str]) -> str:
    lines = ["# mrp completion fish > ~/.config/fish/completions/mrp.fish"]
    for command in commands:
        above, name = _parted(command)
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in command.words.split())
        where = "__fish_use_subcommand"
        if above:
            siblings = next(one.actions for one in commands if one.words == above)
            before = seen.removesuffix(f"; and __fish_seen_subcommand_from {name}")
            where = f"'{before}; and not __fish_seen_subcommand_from {' '.join(siblings)}'"
        lines.append(f"complete -c mrp -f -n {where} -a {name} -d {_quoted(command.help)}")
        found = recipes if command.takes_recipe else [word for word in command.choices if word not in command.actions]
        if found:
            lines.append(f"complete -c mrp -n '{seen}' -a '{' '.join(found)}'")
        for option in command.options:
            choices = f" -f -a '{' '.join(map(str, option.choices))}'" if option.choices else ""
            value = "" if option.nargs == 0 else f" -r{choices}"
            for flag in option.option_strings:
                lines.append(
                    f"complete -c mrp -n '{seen}' -l {flag.lstrip('-')}{value} -d {_quoted(option.help or '')}"
                )
    return "\n".join(lines) + "\n"


def _parted(command: _Command) -> tuple[str, str]:
    """Returns the verbs that a command is an action of, and its own name."""
    above, _, name = command.words.rpartition(" ")
    return above, name


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
