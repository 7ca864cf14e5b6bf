"""The page "People": the crops of the gallery as persons, and what somebody decides about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reid.app import person_cards as people
from reid.app import presentation as present
from reid.app.access import require
from reid.app.accounts import Role
from reid.app.gallery_service import GalleryService
from reid.app.page_values import PageAction, PageParts, PageValues, PageVisit
from reid.app.pages.controls import checkbox_html, hidden_html, page_html, tip_html
from reid.app.pages.crop_cards import crop_of
from reid.app.pages.timeline import timeline_html
from reid.errors import GalleryError
from reid.retrieval.persons.decisions import person_name, person_number
from reid.retrieval.persons.person_files import has_persons
from reid.retrieval.persons.person_state import PersonState

PERSONS_SHOWN = 12  # on a page
CROPS_SHOWN = 12  # of a person
ROWS_GROUPED = 20_000  # that are grouped while the visitor waits
INTRODUCTION = (
    "The crops of this gallery are not grouped yet. Grouping needs no labels: it puts crops together that show the same"
    " person or object, and you then say where it is right."
)
TOO_MANY = "This gallery is large, so group it in a terminal: reid identify {folder}. The persons then appear here."


class PeoplePage:
    """What the page does.

    Args:
        service: The gallery.
    """

    name = "people"
    title = "People"

    def __init__(self, service: GalleryService) -> None:
        self._service = service
        self._data = service.data
        self.actions: Mapping[str, PageAction] = {
            "show": self.show,
            "identify": self.identify,
            "undo": self.undo,
            "timeline": self.timeline,
            "answer": self.answer,
            **{verb: self._decision(verb) for verb in people.DECISIONS},
        }

    def first_html(self) -> str:
        """Return the page without persons, which are read when it is opened."""
        instead = checkbox_html(
            "instead", "Give up older decisions that say the opposite", False, attributes="data-volatile data-quiet"
        )
        options = f'<span class="reid-people-options">{tip_html("person")}{instead}</span>'
        content = (
            f'<form data-action="show">{hidden_html("start", "0")}<div class="reid-row"><span id="reid-people-summary">'
            f"</span>{options}</div>"
            '<div class="reid-result"><p id="reid-people-done" role="status"></p><div id="reid-people-questions"></div>'
            '<div id="reid-people-list"><p class="reid-soft reid-loading">Reading the persons…</p></div></div></form>'
        )
        return page_html("people", "People", content, load="show")

    def show(self, values: PageValues, _visit: PageVisit) -> PageParts:
        """Show the questions and the persons."""
        return self._shown(values, "")

    def identify(self, values: PageValues, visit: PageVisit) -> PageParts:
        """Group the crops of the gallery into persons."""
        require(visit.user, Role.OPERATOR)
        from reid.adaptation.identify import identify

        served = self._data.main
        if len(served.gallery) > ROWS_GROUPED:
            raise GalleryError(TOO_MANY.format(folder=served.folder))
        found = identify(served.folder)
        added = f"{found.new_persons} new persons; {found.undecided} crops stay undecided."
        return self._shown(values, added)

    def undo(self, values: PageValues, visit: PageVisit) -> PageParts:
        """Take the last decision back."""
        require(visit.user, Role.OPERATOR)
        self._service.audit.record("decide", visit.user.name, {"verb": "undo", "subjects": 0})
        return self._shown(values, people.undo(self._data.main.folder))

    def answer(self, values: PageValues, visit: PageVisit) -> PageParts:
        """Record every answer that was chosen; a question without one stays."""
        require(visit.user, Role.OPERATOR)
        answers = []
        for pair, verb in values.starting("answer_").items():
            numbers = [int(word) for word in pair.split("_") if word.isascii() and word.isdigit() and len(word) < 10]
            if len(numbers) == 2 and verb in ("same", "different"):
                answers.append((numbers[0], numbers[1], verb))
        if not answers:
            raise GalleryError("choose an answer first: the same, or not the same")
        self._service.audit.record("decide", visit.user.name, {"verb": "answers", "subjects": len(answers)})
        folder, instead = self._data.main.folder, values.flag("instead")
        return self._shown(values, people.answer_several(self._state(), folder, answers, instead=instead))

    def _decision(self, verb: str) -> PageAction:
        def decide(values: PageValues, visit: PageVisit) -> PageParts:
            require(visit.user, Role.OPERATOR)
            named = values.text("persons").split(",") if values.text("persons") else list(values.words("chosen"))
            persons = [number for number in map(person_number, named) if number]
            if not persons:
                raise GalleryError("choose persons first: check the boxes beside their names")
            text = values.text(f"name-{person_name(persons[0])}".replace("-", "_"), values.text("name"))
            crops = [int(word) for word in values.words("crops") if word.isascii() and word.isdigit()]
            facts = {"verb": verb, "subjects": len(persons) + len(crops)}
            self._service.audit.record("decide", visit.user.name, facts)
            done = people.decide(self._data.main.folder, verb, persons, crops, text, instead=values.flag("instead"))
            return self._shown(values, done)

        return decide

    def timeline(self, values: PageValues, _visit: PageVisit) -> PageParts:
        """Show where and when a person was."""
        state = self._state()
        number = person_number(values.text("persons"))
        samples, visits = people.visits_of(state, number)
        card = people.person_cards(state, [number])[0]
        html = f"<h3>{present.escape(card.title)}</h3>{timeline_html(card.title, samples, visits)}"
        html += '<div class="reid-buttons"><button type="button" class="reid-button" data-close>Close</button></div>'
        return PageParts({"dialog-content": html}, status=f"timeline of {card.title}")

    def _state(self) -> PersonState:
        state = self._service.persons.current()
        if state is None:
            raise GalleryError("this gallery has no persons any more; group its crops again")
        return state

    def _shown(self, values: PageValues, done: str) -> PageParts:
        served = self._data.main
        if not len(served.gallery):
            return PageParts({"people-list": present.note_html("This gallery is empty."), "people-questions": ""})
        if not has_persons(served.folder):
            button = (
                '<button type="button" class="reid-button reid-strong" data-action="identify">Group the crops</button>'
            )
            return PageParts({"people-list": f"<p>{INTRODUCTION}</p>{button}", "people-questions": ""})
        state = self._state()
        numbers = people.persons_by_size(state)
        start = min(values.number("start", 0), max(len(numbers) - 1, 0)) // PERSONS_SHOWN * PERSONS_SHOWN
        cards = people.person_cards(state, numbers[start : start + PERSONS_SHOWN])
        undecided = int((state.persons == 0).sum())
        summary = f"<b>{len(numbers):,}</b> persons, {undecided:,} crops undecided"
        parts = {
            "people-summary": summary,
            "people-done": present.escape(done),
            "people-questions": self._questions_html(state),
            "people-list": self._list_html(state, cards, start, len(numbers)),
        }
        return PageParts(parts, status=done or f"{len(cards)} persons")

    def _questions_html(self, state: PersonState) -> str:
        pairs = people.pairs_to_ask(state)
        if not pairs:
            return ""
        questions = "".join(self._question_html(state, *pair) for pair in pairs)
        return (
            '<section class="reid-card"><h3>Is this the same person?</h3><p class="reid-soft">The answers that tell'
            f' most come first.</p><div class="reid-grid">{questions}</div><div class="reid-buttons">'
            '<button type="button" class="reid-button reid-strong" data-action="answer">Record the answers</button>'
            "</div></section>"
        )

    def _question_html(self, state: PersonState, first: int, second: int, score: float) -> str:
        sides = "".join(
            f"<div><h4>{present.escape(card.title)}</h4>{self._crops_html(state, card.rows[:4].tolist(), '')}</div>"
            for card in people.person_cards(state, [first, second])
        )
        choices = "".join(
            f'<label class="reid-choice"><input type="radio" name="answer_{first}_{second}" value="{verb}" data-quiet'
            f" data-volatile{' checked' * (not verb)}>{words}</label>"
            for verb, words in (("same", "The same"), ("different", "Not the same"), ("", "Not answered"))
        )
        words = present.escape(f"Are {person_name(first)} and {person_name(second)} the same?")
        group = f'<div class="reid-choices" role="radiogroup" aria-label="{words}">{choices}</div>'
        shown = f'<div class="reid-row">{sides}</div><p>similarity {score:.2f}</p>{group}'
        return f'<div class="reid-question">{shown}</div>'

    def _list_html(self, state: PersonState, cards: Sequence[people.PersonCard], start: int, count: int) -> str:
        persons = "".join(self._person_html(state, card) for card in cards)
        moves = [
            ("Earlier", start - PERSONS_SHOWN, start > 0),
            ("Further", start + PERSONS_SHOWN, start + PERSONS_SHOWN < count),
        ]
        pages = "".join(
            f'<button type="button" class="reid-button" data-set="start" data-value="{to}">{words}</button>'
            for words, to, is_there in moves
            if is_there
        )
        tools = (
            '<div class="reid-buttons"><button type="button" class="reid-button" data-action="same">Merge the chosen'
            ' persons</button><button type="button" class="reid-button" data-action="undo">Undo the last decision'
            '</button><button type="button" class="reid-button" data-action="identify">Group new crops</button></div>'
        )
        return f'{tools}<div class="reid-grid">{persons}</div><div class="reid-buttons">{pages}</div>'

    def _person_html(self, state: PersonState, card: people.PersonCard) -> str:
        name, title = person_name(card.number), present.escape(card.title)
        when = f", {card.first} to {card.last}" if card.first else ""
        field = f"name_{name}".replace("-", "_")
        button = '<button type="button" class="reid-button" data-action="{}" data-persons="{}">{}</button>'
        buttons = "".join(
            button.format(verb, name, words)
            for verb, words in (
                ("confirm", "Confirm"), ("split", "Chosen crops are somebody else"), ("timeline", "Timeline"),
            )
        )  # fmt: skip
        return (
            f'<section class="reid-card" aria-label="{title}"><div class="reid-row"><label class="reid-choice">'
            f'<input type="checkbox" name="chosen" value="{name}" data-list data-quiet data-volatile><b>{title}'
            f'</b></label></div><p class="reid-soft">{len(card.rows)} crops, {card.confirmed} confirmed, in cameras'
            f" {present.escape(', '.join(card.cameras))}{when}</p>"
            f"{self._crops_html(state, card.rows[:CROPS_SHOWN].tolist(), 'crops')}"
            f'<div class="reid-row"><input type="text" name="{field}" value="{present.escape(card.name)}"'
            f' maxlength="80" aria-label="Name of {title}" placeholder="Name" data-quiet data-volatile'
            f' style="max-width: 150px">'
            f"{button.format('name', name, 'Save name')}{buttons}</div></section>"
        )

    def _crops_html(self, state: PersonState, rows: Sequence[int], field: str) -> str:
        items = []
        for row in rows:
            sample = state.table.samples[row]
            number = int(state.table.row_ids[row])
            crop = crop_of(sample, "", self._data.main.gallery, number)
            words = present.escape(present.describe(crop))
            tag = present.camera_tag_html(crop)
            image = f'<span class="reid-cell"><img src="{crop.uri}" alt="{words}" title="{words}">{tag}</span>'
            box = (
                f'<label class="reid-choice"><input type="checkbox" name="{field}" value="{number}" data-list'
                f' data-quiet data-volatile aria-label="Choose: {words}">{"✓" if state.confirmed[row] else ""}</label>'
                if field
                else ""
            )
            items.append(f"<li>{image}{box}</li>")
        return f'<ul class="reid-crops">{"".join(items)}</ul>'
