"""Train a reader on your own questions and documents, and ask it a new question.

python examples/own_questions.py [setting …]    a minute on 2 CPU cores; writes own/ and outputs/
"""

import csv
import sys
from pathlib import Path

import exam

NOTES = {
    "Kitchen": "The kettle stands on the shelf above the sink. The knives are in the left drawer.",
    "Workshop": "The saw hangs behind the door. The screws are in the blue box under the bench.",
    "Garden": "The hose lies beside the well. The spade leans against the apple tree.",
    "Office": "The stapler is in the top drawer. The spare keys hang on the hook by the window.",
    "Garage": "The jack is in the boot of the car. The winter tyres are stacked by the back wall.",
    "Attic": "The tent is in the green chest. The skis lie on the beams near the chimney.",
}
QUESTIONS = [  # the right option comes first
    ("Where does the kettle stand?", "above the sink", "in the boot", "near the chimney"),
    ("Where are the knives?", "in the left drawer", "in the blue box", "by the back wall"),
    ("Where does the saw hang?", "behind the door", "above the sink", "on the hook"),
    ("Where are the screws?", "in the blue box", "in the green chest", "in the top drawer"),
    ("Where does the hose lie?", "beside the well", "on the beams", "behind the door"),
    ("What does the spade lean against?", "the apple tree", "the back wall", "the bench"),
    ("Where is the stapler?", "in the top drawer", "in the left drawer", "under the bench"),
    ("Where do the spare keys hang?", "by the window", "behind the door", "by the sink"),
    ("Where is the jack?", "in the boot", "in the green chest", "beside the well"),
    ("Where are the winter tyres?", "by the back wall", "near the chimney", "by the window"),
    ("Where is the tent?", "in the green chest", "in the blue box", "in the boot"),
    ("Where do the skis lie?", "on the beams", "on the shelf", "beside the well"),
]

folder = Path("own")
(folder / "notes").mkdir(parents=True, exist_ok=True)
for title, text in NOTES.items():
    (folder / "notes" / f"{title}.txt").write_text(text, encoding="utf-8")
with (folder / "questions.csv").open("w", encoding="utf-8", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["id", "prompt", "A", "B", "C", "answer"])
    for number, (prompt, *options) in enumerate(QUESTIONS):
        shift = number % 3  # spread the right option over A, B and C
        order = [*options[-shift:], *options[:-shift]] if shift else options
        writer.writerow([number, prompt, *order, "ABC"[shift]])

documents = ["corpus=text", f"corpus.dir={folder / 'notes'}"]
questions = ["data=csv", f"data.dir={folder}", "data.train=questions.csv", "data.options=ABC"]
contexts = exam.retrieve(*documents, *questions)["train"]
print("the right option is supported:", contexts.scores["supported"])

# Word overlap learns from twelve questions; a neural reader (model=minilm) needs some hundred.
held_out = ["data.valid=null", "data.valid_fraction=0.25", "data.folds=3"]
run = exam.train(*documents, *questions, *held_out, "model=lexical", *sys.argv[1:])
print("MAP@3 on held-out questions:", run.systems[-1].estimate)

answer = exam.load(run).answer("Where is the kettle?", ["on the shelf", "in the attic"])
print(answer.best, answer.passages[0]["title"], answer.passages[0]["text"], sep=" · ")
