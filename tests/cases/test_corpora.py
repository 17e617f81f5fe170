"""Corpora as people have them: retrieval finds the right article, and the score says so."""

import json
import shutil
from unicodedata import normalize

import pytest
from helpers import ROOT, refuses, write_csv

from exam.config.compose import compose_config
from exam.pipelines.retrieve import run_retrieve
from exam.retrieval.contexts import read_contexts, read_support

CASES = ROOT / "tests" / "cases"


def retrieve(outputs, folder, file, *overrides, options="ABC", retriever="bm25"):
    """The contexts of a file of questions, as a command finds them."""
    words = ["data=csv", f"data.dir={folder}", f"data.test={file}", f"data.options={options}"]
    words += [f"retriever={retriever}", "evaluate=false", f"outputs={outputs}", *overrides]
    return run_retrieve(compose_config("retrieve", *words))["test"]


def score(*arguments, **options):
    """Recall at 1, and the fraction of questions whose right option has the best support."""
    scores = retrieve(*arguments, **options).scores
    return scores["recall_at_1"].value, scores["supported"].value


@pytest.mark.parametrize("retriever", ["bm25", "tfidf"])
@pytest.mark.parametrize(
    ("case", "file"),
    [("08-cjk", "q"), ("09-combining-marks", "nfc"), ("09-combining-marks", "nfd")],
)
def test_scripts_without_blanks_and_with_marks(tmp_path, case, file, retriever):
    folder = CASES / case
    words = ["corpus=text", f"corpus.dir={folder / 'notes'}"]
    found = score(tmp_path, folder, f"{file}.csv", *words, options="ABCD", retriever=retriever)
    assert found == (1.0, 1.0)


def test_composed_and_decomposed_questions_have_the_same_passages_and_scores(tmp_path):
    folder = CASES / "09-combining-marks"
    words = ["corpus=text", f"corpus.dir={folder / 'notes'}"]
    first, second = (
        retrieve(tmp_path, folder, f"{form}.csv", *words, options="ABCD").stage
        for form in ("nfc", "nfd")
    )
    keys = list(read_contexts(first))
    assert read_contexts(first) == read_contexts(second)
    assert read_support(first, keys) == read_support(second, keys)


# A text, a question that shares no other words with it, its right and a wrong option.
OTHER_SCRIPTS = {
    "Thai": [
        ("ปรอทเป็นโลหะที่เป็นของเหลวที่อุณหภูมิห้อง", "โลหะชนิดใดเป็นของเหลวที่อุณหภูมิห้อง", "ปรอท", "เหล็ก"),
        ("หัวใจสูบฉีดเลือดไปทั่วร่างกาย หัวใจมีสี่ห้อง", "อวัยวะใดสูบฉีดเลือดไปทั่วร่างกาย", "หัวใจ", "ตับ"),
    ],
    "Khmer": [
        ("បារតគឺជាលោហៈរាវនៅសីតុណ្ហភាពបន្ទប់", "លោហៈណាមួយរាវនៅសីតុណ្ហភាពបន្ទប់", "បារត", "ដែក"),
        ("បេះដូងបូមឈាមទៅពេញរាងកាយ", "សរីរាង្គណាបូមឈាមទៅពេញរាងកាយ", "បេះដូង", "ថ្លើម"),
    ],
    "Korean": [
        ("수은은 상온에서 액체인 금속이다.", "상온에서 액체인 금속은 무엇인가?", "수은", "철"),
        ("심장은 온몸으로 피를 보낸다.", "온몸으로 피를 보내는 기관은?", "심장", "간"),
    ],
    "Burmese": [
        ("ပြဒါးသည် အခန်းအပူချိန်တွင် အရည်ဖြစ်သော သတ္တုဖြစ်သည်။", "အပူချိန်တွင်အရည်ဖြစ်သောသတ္တုမှာ", "ပြဒါး", "သံ"),
        ("နှလုံးသည် သွေးကို ခန္ဓာကိုယ်သို့ ပို့ပေးသည်။", "သွေးကိုခန္ဓာကိုယ်သို့ပို့ပေးသောအင်္ဂါ", "နှလုံး", "အသည်း"),
    ],
    "Arabic with points": [
        ("الزِّئْبَقُ فِلِزٌّ سَائِلٌ", "أي فلز سائل في حرارة الغرفة؟", "الزئبق", "الحديد"),
        ("القلب يضخ الدم", "أي عضو يضخ الدم؟", "القلـــب", "الكبد"),
    ],
    "Hebrew with points": [
        ("כַּסְפִּית הִיא מַתֶּכֶת נוֹזְלִית", "איזו מתכת נוזלית?", "כספית", "ברזל"),
        ("הלב מזרים דם", "איזה איבר מזרים דם?", "הלב", "כבד"),
    ],
    "Japanese in half width": [
        ("ｽｲｷﾞﾝは常温で液体の金属です。", "常温で液体の金属は何ですか", "スイギン", "テツ"),
        ("シンゾウは血液を送り出す。", "血液を送り出す臓器は", "ｼﾝｿﾞｳ", "カンゾウ"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("language", OTHER_SCRIPTS)
def test_other_scripts_find_their_articles(tmp_path, language, form):
    articles, rows, qrels = tmp_path / "articles", [], []
    articles.mkdir()
    for number, (text, *parts) in enumerate(OTHER_SCRIPTS[language]):
        (articles / f"{number}.txt").write_text(text, encoding="utf-8")
        prompt, right, wrong = (normalize(form, part) for part in parts)
        rows.append({"id": f"q{number}", "prompt": prompt, "A": wrong, "B": right, "answer": "B"})
        qrels.append({"question": f"q{number}", "article": f"{number}.txt"})
    write_csv(tmp_path / "q.csv", rows)
    write_csv(tmp_path / "q_qrels.csv", qrels)
    words = ["corpus=text", f"corpus.dir={articles}"]
    assert score(tmp_path / "o", tmp_path, "q.csv", *words, options="AB") == (1.0, 1.0)


@pytest.fixture
def same_names(tmp_path):
    """A copy, whose qrels the test may correct."""
    return shutil.copytree(CASES / "13-same-names", tmp_path / "copy")


def test_files_of_one_name_are_two_articles(tmp_path, same_names):
    words = ["corpus=text", f"corpus.dir={same_names}", "corpus.files=**/*.txt"]
    with refuses("('notes.txt' …)", "'a/notes.txt'", "Write the corpus's ids into the qrels"):
        score(tmp_path / "o", same_names, "q.csv", *words)
    qrels = [("q0", "b/notes.txt"), ("q1", "a/notes.txt")]
    write_csv(same_names / "q_qrels.csv", [{"question": q, "article": a} for q, a in qrels])
    recall, _ = score(tmp_path / "o", same_names, "q.csv", *words)
    assert recall == 0.5  # the words of q0 are nearer to the other article


def test_files_that_count_from_zero_are_not_one(tmp_path, same_names):
    words = ["corpus=jsonl", f"corpus.dir={same_names}"]
    with refuses("more.jsonl: article 1 has the id '0'", "corpus.columns.id=null"):
        score(tmp_path / "o", same_names, "two_files.csv", *words)
    words.append("corpus.columns.id=null")
    with refuses("none of the 2 right articles"):
        score(tmp_path / "o", same_names, "two_files.csv", *words)
    qrels = [("q0", "more.jsonl:1"), ("q1", "en.jsonl:1")]
    write_csv(same_names / "two_files_qrels.csv", [{"question": q, "article": a} for q, a in qrels])
    ranked = read_contexts(retrieve(tmp_path / "o", same_names, "two_files.csv", *words).stage)
    ids = {passage["article_id"] for passages in ranked.values() for passage in passages}
    assert ids <= {f"{name}.jsonl:{n}" for name in ("en", "more") for n in (1, 2, 3)}


TITLELESS = ["no_title.parquet", "beir.jsonl", "contents.jsonl", "paragraphs.jsonl"]


@pytest.mark.parametrize("more", [[], ["corpus.columns.title=null"], ["~corpus.columns.title"]])
@pytest.mark.parametrize("file", [*TITLELESS, "some_without.jsonl"])
def test_articles_need_no_title(tmp_path, file, more):
    folder = CASES / "14-titleless"
    words = ["corpus=jsonl", f"corpus.dir={folder}", f"corpus.files={file}", *more]
    found = retrieve(tmp_path, folder, "q.csv", *words)
    assert found.scores["supported"].value == 1
    first = read_contexts(found.stage)["q0"][0]
    assert "pumps blood" in first["text"]
    assert not first["text"].startswith("1")  # an id is no title


ENDINGS = ["wiki.csv", "wiki.jsonl", "wiki.jsonl.gz", "wiki.tsv", "wiki_array.json"]
ENDINGS += ["wiki_lines.json", "WIKI2.JSONL", "stem/part1.jsonl", "stem/*"]


@pytest.mark.parametrize("files", ENDINGS)
def test_tables_of_articles_have_any_ending(tmp_path, files):
    folder = CASES / "15-corpus-endings"
    subfolder, _, name = files.rpartition("/")
    words = ["corpus=jsonl", f"corpus.dir={folder / subfolder}", f"corpus.files={name}"]
    found = retrieve(tmp_path, folder, "q.csv", *words)
    assert found.scores["supported"].value == 1
    assert {p["article_id"] for p in read_contexts(found.stage)["q0"]} <= {"0", "1"}


def test_a_published_corpus_leaves_hidden_files_and_a_readme_out(tmp_path):
    folder = CASES / "15-corpus-endings"
    words = ["corpus=published/stem_270k", f"corpus.dir={folder / 'stem'}"]
    assert retrieve(tmp_path, folder, "q.csv", *words).scores["supported"].value == 1


@pytest.mark.parametrize(
    ("file", "recall"), [("right", 1.0), ("floats", 1.0), ("several", 1.0), ("one_gone", 0.5)]
)
def test_any_right_article_of_the_corpus_counts(tmp_path, file, recall):
    folder = CASES / "21-qrels-strangers"
    words = ["corpus=jsonl", f"corpus.dir={folder}"]
    assert score(tmp_path, folder, f"{file}.csv", *words)[0] == recall


def test_qrels_that_name_no_article_give_no_score(tmp_path):
    folder = CASES / "21-qrels-strangers"
    words = ["corpus=jsonl", f"corpus.dir={folder}"]
    with refuses("'Heart'", "They are titles: set corpus.columns.id=title"):
        score(tmp_path, folder, "titles.csv", *words)
    assert score(tmp_path, folder, "titles.csv", *words, "corpus.columns.id=title")[0] == 1
    with refuses("'008'", "whose ids are '7'"):
        score(tmp_path, folder, "zeros.csv", *words)


def test_every_part_of_a_text_without_stops_is_found(tmp_path):
    """A single sentence of a megabyte would be one passage, and its end would not be read."""
    facts = [f"rivers of the region {n} flow to the lake {n * 7}" for n in range(300)]
    (tmp_path / "long.txt").write_text("; ".join(facts))
    rows = [
        {
            "id": str(n),
            "prompt": f"To which lake do the rivers of the region {n} flow?",
            "A": f"lake {n * 7}",
            "B": f"lake {n * 7 + 1}",
            "answer": "A",
        }
        for n in range(0, 300, 30)
    ]
    write_csv(tmp_path / "q.csv", rows)
    words = ["corpus=text", f"corpus.dir={tmp_path}", "corpus.files=long.txt"]
    found = retrieve(tmp_path / "o", tmp_path, "q.csv", *words, options="AB")
    ranked = read_contexts(found.stage)
    assert all(facts[int(key)] in passages[0]["text"] for key, passages in ranked.items())
    assert max(len(p["text"].split()) for passages in ranked.values() for p in passages) < 200


@pytest.mark.slow
@pytest.mark.parametrize("retriever", ["two_stage", "passages"])
def test_an_encoder_reads_every_part_of_a_text_without_stops(tmp_path, retriever):
    facts = json.loads((CASES / "languages.json").read_text(encoding="utf-8"))["English"]
    filler = "and many other things are told of it by people who walk about in the old town "
    parts = [filler * 15 + fact["text"].replace(".", "") for fact in facts]
    text = " ".join(parts)
    assert len(text) > 12_000
    (tmp_path / "long.txt").write_text(text)
    rows = [
        {"id": str(n), "prompt": fact["prompt"], "A": fact["right"], "B": fact["wrong"]}
        for n, fact in enumerate(facts)
    ]
    write_csv(tmp_path / "q.csv", [{**row, "answer": "A"} for row in rows])
    words = ["corpus=text", f"corpus.dir={tmp_path}", "corpus.files=long.txt", "encoder=minilm"]
    found = retrieve(tmp_path / "o", tmp_path, "q.csv", *words, options="AB", retriever=retriever)
    ranked = read_contexts(found.stage)
    names = [fact["title"].split()[0].lower() for fact in facts]
    hits = [name in ranked[str(n)][0]["text"].lower() for n, name in enumerate(names)]
    assert sum(hits) >= 9, hits
    assert found.scores["supported"].value >= 0.9
