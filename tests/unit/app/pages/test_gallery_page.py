"""Duplicates are listed, and an administrator alone is offered the file of the gallery."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from helpers.asking_pages import asking, service_of
from helpers.person_crops import people
from helpers.served_galleries import make_users, serve_gallery
from reid.app.accounts import Role, User
from reid.app.opened_gallery import open_served_gallery
from reid.records import Embeddings, Sample
from reid.retrieval.gallery import Gallery


def test_duplicates_are_listed(tmp_path: Path) -> None:
    drawn = people(3)
    again = Sample(Path("again.jpg"), "", drawn.samples[0].camera)
    rows = Embeddings((*drawn.samples, again), np.concatenate([drawn.vectors, drawn.vectors[:1]]), "f00d")
    Gallery.build(rows).save(tmp_path / "crops")
    ask, _, _ = asking(service_of(open_served_gallery(tmp_path / "crops"), tmp_path / "state"))
    html = ask("gallery", "duplicates").parts["duplicates"]
    assert "1 groups, 1 crops more than needed" in html
    assert 'data-value="r0"' in html
    assert f'data-value="r{len(drawn.samples)}"' in html
    assert html.count("data-value=") == 2


def test_rows_of_any_condition_are_erased(tmp_path: Path) -> None:
    Gallery.build(people(3)).save(tmp_path / "crops")
    ask, _, _ = asking(service_of(open_served_gallery(tmp_path / "crops"), tmp_path / "asked"))
    where = "camera = 'door' AND identity <> 'p0'"
    table = Gallery.open(tmp_path / "crops").table
    wanted = [one for one in table.samples if one.camera == "door" and one.identity != "p0"]
    assert f"<b>{len(wanted)} rows</b>" in ask("gallery", "preview", erase_where=where).parts["erasure"]
    assert ask("gallery", "preview", erase_where="camera = ").error
    done = ask("gallery", "erase", erase_where=where, rows=str(len(wanted)))
    assert f"<b>{len(wanted)} rows were erased.</b>" in done.parts["erasure"]
    left = Gallery.open(tmp_path / "crops").table.samples
    assert len(left) == len(table) - len(wanted)
    assert not set(left) & set(wanted)


def test_only_an_administrator_exports(tmp_path: Path) -> None:
    drawn = people(3)
    Gallery.build(drawn).save(tmp_path / "crops")
    ask, visit, _ = asking(service_of(open_served_gallery(tmp_path / "crops"), tmp_path / "asked"))
    assert "/api/gallery/export?format=parquet" in ask("gallery", "show").parts["gallery-export"]
    visit.user = User("anna", Role.OPERATOR)
    assert "gallery-export" not in ask("gallery", "show").parts
    served = serve_gallery(tmp_path / "crops", tmp_path / "state", make_users(tmp_path / "users.toml"))
    assert served.client("operator").get("/api/gallery/export").status_code == 403
    admin = served.client("admin")
    sent = admin.get("/api/gallery/export?format=parquet")
    assert sent.status_code == 200
    assert 'filename="crops.parquet"' in sent.headers["content-disposition"]
    (tmp_path / "got.parquet").write_bytes(sent.content)
    table = pq.read_table(tmp_path / "got.parquet")
    np.testing.assert_allclose(np.stack(table.column("vector").to_pylist()), drawn.vectors, atol=1e-6)
    assert table.column("camera").to_pylist() == [sample.camera for sample in drawn.samples]
    assert list((tmp_path / "state" / "exports").iterdir()) == [], "no copy stays behind"
    assert [entry["action"] for entry in admin.get("/api/audit").json()] == ["export"]
    assert admin.get("/api/gallery/export?format=exe").status_code == 422
