"""A chat in a window of Tk, which comes with Python: python tk_chat.py [MODEL] [--self-test QUESTION].

MODEL is the path of a GGUF or the name of a model on this machine; without one it is the bundled zephyr-tiny.
The window is there at once, never waits for the model, and takes the model with it when it is closed.
"""

from __future__ import annotations

import argparse
import sys
import tkinter
from tkinter import ttk

from zephyr_local import Message, freeze_support
from zephyr_local.desktop.tk import TkModel


class ChatWindow:
    def __init__(self, model_path: str | None) -> None:
        self.root = tkinter.Tk()
        self.root.title("Chat")
        self.root.geometry("640x520")
        self._build()
        self.model = model = TkModel(self.root)
        model.on_load_progress = lambda share: self._tell(f"Loading the model: {share:.0%}", share)
        model.on_loaded = lambda name: self._tell(f"{name} is ready")
        model.on_load_stopped = lambda: self._tell("The load was stopped. The next question begins it again.")
        model.on_prefill = lambda done, total: self._tell(f"Reading the chat: {done} of {total} tokens", done / total)
        model.on_piece = self._append
        model.on_question_returned = lambda question: self.entry.insert(0, question)
        model.on_dropped = lambda n_messages: self._tell(f"{n_messages} old messages are no longer shown to the model")
        model.on_chat_changed = self._show
        model.on_finished = self._finished
        model.on_failed = lambda problem, remedy: self._tell(f"{problem}. {remedy}.")
        model.on_crashed = lambda problem: self._tell(f"{problem}. The next question starts the model again.")
        model.load(model_path)
        self._tell("Loading the model", 0.0)

    def _build(self) -> None:
        if self.root.tk.call("tk", "windowingsystem") == "x11":
            ttk.Style().theme_use("clam")  # the others have their system's own
        below = ttk.Frame(self.root, padding=(8, 0, 8, 8))
        below.pack(side="bottom", fill="x")
        self.status = ttk.Label(below, wraplength=440)
        self.status.pack(side="left", fill="x", expand=True)
        self.progress = ttk.Progressbar(below, maximum=1.0, length=140)
        self.progress.pack(side="right")
        row = ttk.Frame(self.root, padding=8)
        row.pack(side="bottom", fill="x")
        self.entry = ttk.Entry(row)
        self.entry.pack(side="left", fill="x", expand=True)
        self.entry.bind("<Return>", lambda _event: self.ask())
        self.entry.focus()
        self.send = ttk.Button(row, text="Send", command=self.ask)
        self.stop = ttk.Button(row, text="Stop", command=lambda: self.model.stop())
        self.again = ttk.Button(row, text="Regenerate", command=self._regenerate)
        for button in (self.send, self.stop, self.again):
            button.pack(side="left", padx=(6, 0))
        self.root.bind("<Escape>", lambda _event: self.model.stop())
        bar = ttk.Scrollbar(self.root)
        bar.pack(side="right", fill="y")
        self.text = tkinter.Text(self.root, wrap="word", state="disabled", padx=12, pady=8, font="TkDefaultFont")
        self.text.pack(fill="both", expand=True)
        self.text.tag_configure("user", foreground="#1a5fb4", spacing1=10, spacing3=4)
        self.text.configure(yscrollcommand=bar.set)
        bar.configure(command=self.text.yview)

    # --- what the user does ---

    def ask(self) -> None:
        question = self.entry.get().strip()
        if question and self.model.state != "answering":
            if self.model.state in ("empty", "crashed"):
                self.model.restart()
            self.model.ask(question)
            self.entry.delete(0, "end")
            self._append(f"{question}\n", "user")
            self._tell("Waiting for the answer")

    def _regenerate(self) -> None:
        self.model.regenerate()
        self._show(self.model.turns[:-1])
        self._tell("Waiting for another answer")

    # --- what the model does ---

    def _finished(self, reason: str) -> None:
        finish, said = self.model.last_finish, {"stop": "Ready", "length": "Cut at its greatest length"}
        speed = f", {finish.completion_tokens / max(finish.completion_s, 0.001):.0f} tokens/s" if finish else ""
        self._tell(said.get(reason, "Stopped") + speed)

    # --- what is seen ---

    def _tell(self, line: str, share: float = 0.0) -> None:
        self.status.configure(text=line)
        self.progress.configure(value=share)
        state, has_turns = self.model.state, bool(self.model.turns)
        self.send.state(["disabled" if state == "answering" else "!disabled"])
        self.stop.state(["!disabled" if state in ("answering", "loading") else "disabled"])
        self.again.state(["!disabled" if has_turns and state in ("ready", "crashed") else "disabled"])

    def _append(self, text: str, tag: str = "assistant") -> None:
        is_at_end = self.text.yview()[1] == 1.0  # else the user reads further up: leave it there
        self.text.configure(state="normal")
        self.text.insert("end", text, tag)
        self.text.configure(state="disabled")
        if is_at_end:
            self.text.see("end")

    def _show(self, turns: tuple[Message, ...]) -> None:
        top, bottom = self.text.yview()
        self.text.configure(state="normal")
        self.text.delete("1.0", "end")
        for turn in turns:
            self.text.insert("end", f"{turn.content}\n", turn.role)
        self.text.configure(state="disabled")
        self.text.yview_moveto(1.0 if bottom == 1.0 else top)


def self_test(window: ChatWindow, question: str) -> list[str]:
    """Ask as a user would, and close the window; the answer is in the list once ``mainloop`` has returned."""
    answer: list[str] = []

    def take(line: str) -> None:
        answer.append(line)
        window.root.destroy()

    window.model.on_finished = lambda _reason: take(window.model.turns[-1].content)
    window.model.on_failed = lambda problem, remedy: take(f"{problem}. {remedy}.")
    window.entry.insert(0, question)
    window.ask()
    return answer


def main() -> int:
    parser = argparse.ArgumentParser(description="A chat in a window of Tk")
    parser.add_argument("model", nargs="?")
    parser.add_argument("--self-test", metavar="QUESTION", help="print the answer and end")
    arguments = parser.parse_args()
    window = ChatWindow(arguments.model)
    answer = self_test(window, arguments.self_test) if arguments.self_test else []
    window.root.mainloop()
    print(*answer, sep="\n", end="\n" if answer else "")
    return 0 if window.model.wait_closed(10) and window.model.last_error is None else 1


if __name__ == "__main__":
    freeze_support()  # for an application that is frozen
    sys.exit(main())
