"""Work that several processes share through a folder."""

import threading
import time
from dataclasses import dataclass

from filelock import FileLock

from training.options import Settings, option
from training.runs.sharing import open_in_turn, share_work


@dataclass(frozen=True)
class Toy(Settings):
    command = "toy"
    size: int = option(1, help="A size.")


def test_every_piece_is_done_once_and_all_results_come_in_order(tmp_path):
    done = []
    pieces = {tmp_path / name: (lambda name=name: done.append(name) or name.upper()) for name in ("b", "a", "c")}
    assert share_work(pieces) == ["B", "A", "C"]
    assert done == ["b", "a", "c"]


def test_a_piece_that_another_holds_is_waited_for_and_the_others_are_done_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr("training.runs.sharing._POLL_SECONDS", 0.01)
    held, order = FileLock(tmp_path / "a.lock", thread_local=False), []
    held.acquire()
    threading.Thread(target=lambda: (time.sleep(0.3), order.append("released"), held.release())).start()
    share_work({tmp_path / name: (lambda name=name: order.append(name)) for name in ("a", "b", "c")})
    assert order == ["b", "c", "released", "a"]


def test_a_folder_is_opened_by_one_after_the_other(tmp_path):
    order = []

    def open_too():
        with open_in_turn(Toy(), tmp_path):
            order.append("second")

    with open_in_turn(Toy(), tmp_path):
        other = threading.Thread(target=open_too)
        other.start()
        time.sleep(0.1)
        order.append("first")
    other.join(10)
    assert order == ["first", "second"]
