"""Train MiniLM with and without retrieved passages, and compare the two: `exam demo` in Python.

python examples/quickstart.py [setting …]    2 minutes on 2 CPU cores; more settings are optional
"""

import sys

import exam

settings = ["trainer.num_train_epochs=1", *sys.argv[1:]]
open_book = exam.train(*settings)
closed_book = exam.train(*settings, "retriever=none")
print(exam.evaluate([open_book, closed_book]))

reader = exam.load(open_book)
answer = reader.answer(
    "What do orchid seeds need to sprout?", ["a fungal partner", "fire", "a host tree"]
)
print(answer.best, answer.probabilities)
for passage in answer.passages:
    print(passage["rank"], passage["title"], passage["text"])
