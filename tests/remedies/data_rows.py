"""Files of questions and articles that are refused."""

import json
from pathlib import Path

from remedies.following import Row, Words

HEADER = "id,prompt,A,B,C,D,E,answer\n"
LINES = ["1,where?,a,b,c,d,e,A\n", "2,when?,f,g,h,i,j,B\n", "3,who is it?,k,l,m,n,o,C\n"]
GOOD = HEADER + "".join(LINES)
MANY = HEADER + "".join(
    f"{n},{w} lives in the {v}?,{w}a,{w}b,{w}c,{v}d,{v}e,A\n"
    for n, (w, v) in enumerate(
        zip(
            ["otter", "heron", "badger", "newt", "falcon", "mole", "trout", "beetle"],
            ["river", "marsh", "forest", "pond", "cliff", "meadow", "stream", "log"],
            strict=True,
        )
    )
)
SAME = HEADER + "".join(f"{n},where?,a,b,c,d,e,A\n" for n in range(4))
TEST = "retrieve data=csv data.test=q.csv"
LISTED = "retrieve data=csv data.test=q.jsonl data.options=null"
TRAIN = "train data=csv data.train=q.csv data.folds=2 data.valid=null data.valid_fraction=0.4"
TEXT = "The river is long. An otter lives in it, and eats fish."


def as_lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def question(**columns: object) -> str:
    letters = dict(zip("ABCDE", "abcde", strict=True))
    return as_lines({"id": "1", "prompt": "where?", **letters, "answer": "A", **columns})


def article(**columns: object) -> dict[str, object]:
    return {"id": "1", "title": "River", "text": TEXT, **columns}


def rewrite(name: str, text: str):
    """Return what a remedy asks you to do with a file."""

    def act(words: Words) -> Words:
        Path(name).write_text(text, encoding="utf-8")
        return words

    return act


QUESTIONS = [
    Row(
        "or map another column with data.columns.answer",
        TEST,
        files={"q.csv": "id,prompt,A,B,C,D,E,answer,chosen\n1,where?,a,b,c,d,e,x,A\n"},
        fill={"<name>": "chosen"},
        act={"Write the label": rewrite("q.csv", GOOD)},
    ),
    Row(
        "does not exist.\n§Give its folder",
        "retrieve data=csv data.test=gone.csv",
        files={"sub/q.csv": GOOD},
        fill={"<folder>": "sub", "<file>": "q.csv"},
    ),
    Row(
        "or hold out a share of train",
        "retrieve data=csv data.train=q.csv data.valid=gone.csv",
        files={"q.csv": GOOD, "sub/q.csv": GOOD, "sub/v.csv": GOOD},
        fill={"<folder>": "sub", "<file>": "v.csv"},
    ),
    Row(
        "or name its column with data.columns.options",
        LISTED,
        files={"q.jsonl": question(options="abc", endings=["a", "b"])},
        fill={"<name>": "endings"},
    ),
    Row(
        "Set data.columns.options=§.§, or write",
        LISTED,
        files={"q.jsonl": question(options={"inner": ["a", "b"], "other": 1})},
    ),
    Row(
        "or map another column with data.columns.§=<name>",
        "retrieve data=csv data.test=q.jsonl",
        files={"q.jsonl": question(A=["a"], first="a")},
        fill={"<name>": "first"},
    ),
    Row(
        "or map another column with data.columns.§=<name>",
        "retrieve data=csv data.test=q.jsonl",
        files={"q.jsonl": question(prompt=["where?"], asked="where?")},
        fill={"<name>": "asked"},
    ),
    Row(
        "with a column for each option",
        TEST,
        files={"q.csv": 'number,asked,x,y,list,right,text\n1,where?,a,b,"[""a"", ""b""]",A,a\n'},
        fill={
            "data.columns.prompt=<name>": "data.columns.prompt=asked",
            "data.columns.options=<name>": "data.columns.options=list",
            "data.columns.answer=<name>": "data.columns.answer=right",
            "data.columns.A=<name>": "data.columns.A=x",
            "data.columns.B=<name>": "data.columns.B=y",
            "data.columns.correct=<name>": "data.columns.correct=text",
        },
        skip={"data.columns.correct": "it replaces a part of the other choices"},
    ),
    Row("leaves option", f"{TEST} data.options=ABCD", files={"q.csv": GOOD}),
    Row(
        "accept such rows with data.strict",
        f"{TEST} data.strict=true",
        files={"q.csv": HEADER + "1,where?,a,a,c,d,e,A\n"},
        act={"Correct the row": rewrite("q.csv", GOOD)},
    ),
    Row(
        "Give every question one",
        TEST,
        files={"q.csv": HEADER + LINES[0] + LINES[1].removeprefix("2")},
        act={"Give every question one": rewrite("q.csv", GOOD)},
    ),
    Row(
        "Give every question a different id",
        TEST,
        files={"q.csv": HEADER + LINES[0] + LINES[0]},
        act={"Give every question a different id": rewrite("q.csv", GOOD)},
    ),
    Row(
        "Read its names with data.header=null",
        f"{TEST} data.header=[id,prompt,A,B,C,D,E,answer]",
        files={"q.csv": GOOD},
    ),
    Row(
        "names its columns, and data.header",
        "retrieve data=csv data.test=q.jsonl data.header=[id,prompt,A,B,C,D,E,answer]",
        files={"q.jsonl": question()},
    ),
    Row(
        "needs generated questions",
        "retrieve data=csv data.test=generated",
        files={"q.csv": GOOD},
        act={"give the file": lambda words: [*words[:-1], "data.test=q.csv"]},
    ),
]
SPLITS = [
    Row(
        "names no questions to report",
        "train data=csv data.train=q.csv data.folds=2",
        files={"q.csv": MANY, "v.csv": GOOD},
        fill={"<file>": "v.csv"},
    ),
    Row(
        "has no training questions",
        "train data=csv data.valid=v.csv data.folds=2",
        files={"q.csv": MANY, "v.csv": GOOD},
        fill={"<file>": "q.csv"},
    ),
    Row(
        "leaves none to train on",
        TRAIN.replace("0.4", "0.9"),
        files={"q.csv": MANY, "v.csv": GOOD},
        fill={"<file>": "v.csv"},
        act={"Set a smaller fraction": lambda words: [*words[:-1], "data.valid_fraction=0.3"]},
    ),
    Row(
        "groups of near-duplicates, too few",
        "train data=csv data.train=q.csv data.valid=v.csv data.folds=20",
        files={"q.csv": MANY, "v.csv": GOOD},
    ),
    Row(
        "no fold can choose the checkpoint",
        "train data=csv data.train=same.csv data.valid=v.csv data.folds=2",
        files={"same.csv": SAME, "v.csv": GOOD},
    ),
    Row(
        "data.drop_leaks=true drops all",
        "train data=csv data.train=v.csv data.valid=v.csv data.folds=2 data.drop_leaks=true",
        files={"q.csv": MANY, "v.csv": GOOD},
        fill={"<file>": "q.csv"},
    ),
    Row(
        "questions have no answer",
        "train data=csv data.train=q.csv data.valid=v.csv data.folds=2",
        files={
            "q.csv": MANY.replace(",answer\n", ",answer,right\n").replace(",A\n", ",,A\n"),
            "v.csv": GOOD.replace(",answer\n", ",answer,right\n")
            .replace(",e,A\n", ",e,A,A\n")
            .replace(",B\n", ",B,B\n")
            .replace(",C\n", ",C,C\n"),
        },
        fill={"<name>": "right"},
    ),
]
JSONL = "retrieve data=csv data.test=q.csv corpus=jsonl corpus.dir=c"
TEXTS = "retrieve data=csv data.test=q.csv corpus=text corpus.dir=c"
CORPORA = [
    Row(
        "does not exist.\nGive the folder with corpus.dir",
        TEXTS,
        files={"d/a.txt": TEXT},
        fill={"<folder>": "d"},
    ),
    Row(
        "is a file, and corpus.files",
        f"{JSONL}/a.jsonl corpus.files=a.jsonl",
        files={"c/a.jsonl": as_lines(article())},
        fill={"<folder>": "c"},
    ),
    Row(
        "Give the folder: corpus.dir=§ corpus.files=null",
        f"{JSONL} corpus.files=inner",
        files={"c/inner/a.jsonl": as_lines(article())},
    ),
    Row(
        "Convert documents to text files",
        TEXTS,
        files={"c/a.doc": "x", "d/a.txt": TEXT},
        fill={"<folder>": "d"},
        act={"Convert documents": rewrite("c/a.txt", TEXT)},
    ),
    Row(
        "Give its folder with corpus.dir=<folder>",
        JSONL,
        files={"c/a.doc": "x", "d/a.jsonl": as_lines(article())},
        fill={"<folder>": "d", "<pattern>": "a.jsonl"},
    ),
    Row(
        "is not UTF-8 (§ at byte",
        TEXTS,
        files={"c/good.txt": TEXT, "c/bad.txt": "caf\udce9"},
        fill={"<pattern>": "good.txt"},
    ),
    Row(
        "has the columns §, but no",
        JSONL,
        files={
            "c/a.jsonl": as_lines({"id": "1", "title": "River", "body": TEXT}),
            "c/b.jsonl": as_lines({"id": "2", "title": "River", "body": TEXT, "text": TEXT}),
        },
        fill={"<name>": "body", "<pattern>": "b.jsonl"},
    ),
    Row(
        "has the columns §, but no",
        JSONL,
        files={
            "c/a.jsonl": as_lines({"key": "1", "title": "River", "text": TEXT}),
            "c/b.jsonl": as_lines({"id": "2", "key": "2", "title": "River", "text": TEXT}),
        },
        fill={"<name>": "key", "<pattern>": "b.jsonl"},
    ),
    Row(
        "name another column with corpus.columns.§",
        JSONL,
        files={"c/a.jsonl": as_lines(article(text={"a": 1}, body=TEXT))},
        fill={"<name>": "body"},
        act={"Write a text": rewrite("c/a.jsonl", as_lines(article()))},
    ),
    Row(
        "Give every article a different id",
        JSONL,
        files={"c/a.jsonl": as_lines(article(key="1"), article(key="2"))},
        fill={"<name>": "key"},
        act={
            "Give every article a different id": rewrite(
                "c/a.jsonl", as_lines(article(), article(id="2"))
            )
        },
    ),
    Row(
        "or say so: corpus.columns.title=null",
        f"{JSONL} corpus.columns.title=heading",
        files={"c/a.jsonl": as_lines(article(heading=""))},
        fill={"<name>": "title"},
    ),
]
CORPORA += [
    Row(
        "or set a smaller chunking.min_sentence_chars",
        JSONL,
        files={"c/a.jsonl": as_lines(article(text=" ")), "d/a.jsonl": as_lines(article())},
        fill={"<folder>": "d", "<pattern>": "a.jsonl"},
    ),
    Row(
        "has no articles.\nName its files",
        JSONL,
        files={"c/a.jsonl": "\n", "d/a.jsonl": as_lines(article())},
        fill={"<folder>": "d", "<pattern>": "a.jsonl"},
    ),
]
CORPORA += [
    Row(
        "Read a table of articles",
        "retrieve data=csv data.test=q.csv corpus=wikipedia corpus.dir=c",
        files={"c/a.jsonl": as_lines(article())},
        fill={"<file>": "a.jsonl"},
    ),
    Row(
        "Convert it to plain text in UTF-8, and give that",
        JSONL + " corpus.files=a.pdf",
        files={"c/a.pdf": "%PDF-1.4\n", "d/a.txt": TEXT},
        fill={"<folder>": "d", "<file>": "a.txt"},
    ),
    Row(
        "Convert it to plain text in UTF-8, or leave it out",
        TEXTS,
        files={"c/a.txt": "%PDF-1.4\n", "c/good.txt": TEXT},
        fill={"<pattern>": "good.txt"},
        act={"Convert it": rewrite("c/a.txt", TEXT)},
    ),
]
PLACE = {
    "q.csv": GOOD,
    "c/a.jsonl": as_lines(article(), article(id="2", title="Marsh", text=TEXT[:30])),
}
BM25 = f"{JSONL} retriever=bm25 outputs=outputs"
RETRIEVALS = [
    Row(
        "has no questions.\nGive a file: data.test",
        BM25.replace("data.test=q.csv ", ""),
        files=PLACE,
        fill={"<file>": "q.csv"},
    ),
    Row(
        "They are titles: set corpus.columns.id",
        BM25,
        files={**PLACE, "q_qrels.csv": "question,article\n1,River\n2,Marsh\n"},
    ),
    Row("but no question has more than", f"{BM25} metric.k=9", files=PLACE),
    Row(
        "reads the context of each question",
        f"{BM25.replace('bm25', 'provided')}",
        files={**PLACE, "q.csv": HEADER.strip() + ",passage\n1,where?,a,b,c,d,e,A,a text\n"},
        fill={"<name>": "passage"},
    ),
]
