"""``reid identify``: group the crops of a gallery into persons, and record what people say about them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reid.cli.identify_answers import Folder, answers, gallery_folder
from reid.cli.options import AsJson
from reid.errors import ConfigError, DataError, unknown_name

if TYPE_CHECKING:
    from reid.retrieval.persons.decisions import Decision
    from reid.retrieval.persons.person_state import PersonState

METHODS = ("auto", "density", "mutual")  # those of reid.adaptation.person_groups, which imports heavy libraries

commands = typer.Typer()
identify = typer.Typer(no_args_is_help=False)
commands.add_typer(identify, name="identify")
identify.add_typer(answers)

Instead = Annotated[
    bool, typer.Option("--instead", help="Replace older decisions that say the opposite; undo brings them back.")
]
Subjects = Annotated[
    list[str], typer.Argument(help="Persons, such as person-12 or a name, or paths of crops of the gallery.")
]
Person = Annotated[str, typer.Argument(help="Person, such as person-12 or a name.")]


@identify.callback(
    invoke_without_command=True,
    epilog="Example: reid identify --gallery galleries/crops; reid identify same person-3 person-7 --gallery"
    " galleries/crops",
)
def identify_gallery(
    context: typer.Context,
    gallery: Folder = None,
    method: Annotated[
        str,
        typer.Option(
            help="density: crops that are close together are one person; mutual: crops that are each other's nearest"
            " are joined; auto: both, density where the crops allow it."
        ),
    ] = "auto",
    false_match_rate: Annotated[
        float,
        typer.Option(help="Share of pairs of different people that score as high as two groups that are joined."),
    ] = 0.001,
    again: Annotated[
        bool, typer.Option("--again", help="Group all crops anew. Confirmed crops keep their persons.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Group the crops of a gallery into persons, each with a confidence.

    Crops that have a person keep it.  Crops that were added since the last time get an existing person, become a new
    one, or stay undecided.  Where the gallery knows identities, they are compared with the persons, but never used.
    What people decide with the verbs below is kept, whatever the program finds.
    """
    context.obj = gallery
    if context.invoked_subcommand is not None:
        return
    if method not in METHODS:
        raise ConfigError(unknown_name("--method", method, METHODS))
    if not 0 < false_match_rate < 1:
        raise ConfigError(f"--false-match-rate: expected a number above 0 and below 1, got {false_match_rate:g}")
    folder = gallery_folder(context, gallery)
    from reid.adaptation.identify import identify as run
    from reid.evaluation.reports.person_report import person_lines, persons_json, summary_line

    found = run(folder, method=method, false_match_rate=false_match_rate, again=again)
    report = {**persons_json(found.state), **found.to_json()}
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    for line in person_lines(found.state):
        typer.echo(line)
    for one in found.suggestions[:10]:
        typer.echo(f"hint: {one.text}", err=True)
    for group in found.figures:
        if group.reason:
            typer.echo(f"hint: {group.group}: {group.reason}; only nearest neighbours were joined", err=True)
    added = report["added"]
    typer.echo(
        f"{summary_line(report)}; of the crops without a person before, {added['existing']} got an existing one,"
        f" {added['new']} became {added['new_persons']} new persons, {added['undecided']} stay undecided",
        err=True,
    )


@identify.command("list", epilog="Example: reid identify list --gallery galleries/crops --json")
def identify_list(context: typer.Context, gallery: Folder = None, as_json: AsJson = False) -> None:
    """List the persons of a gallery as they are, without grouping."""
    from reid.evaluation.reports.person_report import person_lines, persons_json, summary_line
    from reid.retrieval.persons.person_state import read_persons

    state = read_persons(gallery_folder(context, gallery))
    report = persons_json(state)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    for line in person_lines(state):
        typer.echo(line)
    typer.echo(summary_line(report), err=True)


@identify.command("same", epilog="Example: reid identify same person-3 person-7 --gallery galleries/crops")
def identify_same(
    context: typer.Context,
    subjects: Subjects,
    gallery: Folder = None,
    instead: Instead = False,
    as_json: AsJson = False,
) -> None:
    """Say that persons or crops are one person.

    The first person keeps its id, and the others become part of it.  A crop of a person without confirmed crops brings
    this person with it.
    """
    from reid.retrieval.persons.requests import decide_same, find_subject

    def make(state: PersonState) -> Decision:
        return decide_same(state, [find_subject(state, text) for text in subjects])

    _decide(gallery_folder(context, gallery), make, instead, as_json)


@identify.command(
    "different", epilog="Example: reid identify different crops/17.jpg person-3 --gallery galleries/crops"
)
def identify_different(
    context: typer.Context,
    first: Annotated[str, typer.Argument(help="Person, or path of a crop of the gallery.")],
    second: Annotated[str, typer.Argument(help="Person, or path of a crop of the gallery.")],
    gallery: Folder = None,
    instead: Instead = False,
    as_json: AsJson = False,
) -> None:
    """Say that two persons or crops are different people, and reject a crop of a person.

    A crop that is of this person now leaves it and becomes a new person.  Crops that nobody has confirmed and that look
    more like the crop that leaves go with it.
    """
    from reid.retrieval.persons.requests import decide_different, find_subject

    def make(state: PersonState) -> Decision:
        return decide_different(state, find_subject(state, first), find_subject(state, second))

    _decide(gallery_folder(context, gallery), make, instead, as_json)


@identify.command("confirm", epilog="Example: reid identify confirm person-3 --gallery galleries/crops")
def identify_confirm(
    context: typer.Context,
    person: Person,
    crops: Annotated[
        list[str] | None, typer.Argument(help="Paths of crops that show the person. Default: all that it has now.")
    ] = None,
    gallery: Folder = None,
    instead: Instead = False,
    as_json: AsJson = False,
) -> None:
    """Confirm that crops show a person.  They stay with it, whatever is added or grouped later."""
    from reid.retrieval.persons.requests import decide_confirm, find_subject

    def make(state: PersonState) -> Decision:
        return decide_confirm(state, find_subject(state, person), [find_subject(state, text) for text in crops or ()])

    _decide(gallery_folder(context, gallery), make, instead, as_json)


@identify.command("split", epilog="Example: reid identify split crops/17.jpg crops/18.jpg --gallery galleries/crops")
def identify_split(
    context: typer.Context,
    crops: Annotated[list[str], typer.Argument(help="Paths of the crops that leave their person.")],
    gallery: Folder = None,
    instead: Instead = False,
    as_json: AsJson = False,
) -> None:
    """Say that some crops of a person are another person together."""
    from reid.retrieval.persons.requests import decide_split, find_subject

    def make(state: PersonState) -> Decision:
        return decide_split(state, [find_subject(state, text) for text in crops])

    _decide(gallery_folder(context, gallery), make, instead, as_json)


@identify.command("name", epilog='Example: reid identify name person-12 "Anna" --gallery galleries/crops')
def identify_name(
    context: typer.Context,
    person: Annotated[str, typer.Argument(help="Person, such as person-12, or path of one of its crops.")],
    name: Annotated[str, typer.Argument(help="Name of the person. An empty name takes the name away.")],
    gallery: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Give a person a name, by which all verbs know it from then on."""
    from reid.data.label_text import clean_label
    from reid.retrieval.persons.requests import decide_name, find_subject

    def make(state: PersonState) -> Decision:
        return decide_name(state, find_subject(state, person), clean_label(name))

    _decide(gallery_folder(context, gallery), make, False, as_json)


@identify.command("undo", epilog="Example: reid identify undo --gallery galleries/crops")
def identify_undo(
    context: typer.Context,
    number: Annotated[
        int | None, typer.Argument(help="Number of the decision, as history shows it. Default: the last one.")
    ] = None,
    gallery: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Take a decision back, with all that followed from it."""
    from reid.evaluation.reports.person_report import decision_line
    from reid.retrieval.persons.person_changes import undo_decision

    state, taken, position = undo_decision(gallery_folder(context, gallery), number)
    if as_json:
        typer.echo(json.dumps({"undone": taken.to_json(), "decisions": len(state.log.decisions)}, indent=2))
    else:
        typer.echo(f"took back\t{decision_line(position, taken.to_json())}")


@identify.command("history", epilog="Example: reid identify history --gallery galleries/crops")
def identify_history(context: typer.Context, gallery: Folder = None, as_json: AsJson = False) -> None:
    """List the decisions, the oldest first."""
    from reid.evaluation.reports.person_report import decision_line
    from reid.retrieval.persons.person_files import read_decisions
    from reid.retrieval.storage import check_gallery

    folder = gallery_folder(context, gallery)
    check_gallery(folder)
    tables = [one.to_json() for one in read_decisions(folder).decisions]
    if as_json:
        typer.echo(json.dumps(tables, indent=2))
        return
    for number, table in enumerate(tables, 1):
        typer.echo(decision_line(number, table))


@identify.command("export", epilog="Example: reid identify export decisions.json --gallery galleries/crops")
def identify_export(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="JSON file to write.")],
    gallery: Folder = None,
) -> None:
    """Write the decisions to a file.  It names crops by path and content; erasures do not reach it."""
    from reid.files import check_output_file
    from reid.retrieval.persons.decisions import FORMAT
    from reid.retrieval.persons.person_files import read_decisions, write_exported_decisions
    from reid.retrieval.storage import check_gallery

    folder = gallery_folder(context, gallery)
    check_gallery(folder)
    check_output_file(file, FORMAT, [str(folder / "decisions.json")])
    log = read_decisions(folder)
    try:
        write_exported_decisions(file, log)
    except OSError as error:
        raise DataError(f"{file}: cannot be written ({error.strerror or error})") from error
    typer.echo(f"{file}\t{len(log.decisions)} decisions")


@identify.command("import", epilog="Example: reid identify import decisions.json --gallery galleries/crops")
def identify_import(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="JSON file that export wrote.")],
    gallery: Folder = None,
    instead: Instead = False,
) -> None:
    """Add the decisions of a file to those of a gallery, all or none.

    Crops are found by path, or by content where an image was moved.  Ids of persons of the file are matched to those of
    the gallery by their crops; a person that is new here gets a new id if its own is taken.
    """
    from reid.retrieval.persons.person_changes import import_decisions
    from reid.retrieval.persons.person_files import read_exported_decisions

    log = read_exported_decisions(file)
    _, added, known = import_decisions(gallery_folder(context, gallery), log, instead=instead)
    passed_over = len(log.decisions) - added - known
    rest = f", {passed_over} passed over: the gallery has erased crops, and none of theirs" if passed_over else ""
    typer.echo(f"{file}\t{added} decisions added, {known} were there already{rest}")


def _decide(folder: Path, make: Callable[[PersonState], Decision], instead: bool, as_json: bool) -> None:
    """Record a decision, and tell what it changed."""
    from reid.evaluation.reports.person_report import decision_line
    from reid.retrieval.persons.person_changes import record_decision

    state, changed = record_decision(folder, make, instead=instead)
    number = len(state.log.decisions)
    table = state.log.decisions[-1].to_json()
    if as_json:
        typer.echo(json.dumps({"number": number, **table, "changed_crops": changed}, indent=2))
        return
    for one in table.get("replaced", ()):
        typer.echo(f"hint: this replaces\t{decision_line(number, one)}", err=True)
    typer.echo(decision_line(number, table))
    typer.echo(f"{changed} crops have another person now", err=True)
