"""Six languages, ten made-up questions and articles each: search finds them, support sees them."""

import json
from unicodedata import normalize

import pytest
from datasets import Dataset
from helpers import jsonl_corpus

from exam.config import Chunking, Encoder, Index, Retriever, RetrieverKind
from exam.data.schema import FEATURES
from exam.retrieval.contexts import read_contexts, read_support
from exam.retrieval.retriever import Retrieval

# fmt: off
# ruff: noqa: E501
LANGUAGES = {
    "Chinese": [
        ("光合作用", "光合作用是植物利用阳光把二氧化碳和水变成糖和氧气的过程。叶绿素吸收光能。", "植物通过什么过程制造糖？", "光合作用", "细胞呼吸"),
        ("心脏", "心脏是一个由肌肉组成的器官，位于胸腔，把血液推送到全身。", "哪个器官把血液送到全身？", "心脏", "肝脏"),
        ("木星", "木星是太阳系中最大的行星，表面有一个巨大的红色风暴。", "太阳系里最大的行星是哪一颗？", "木星", "火星"),
        ("水银", "水银是在室温下呈液态的金属，过去用于温度计。", "哪种金属在室温下是液体？", "水银", "铅"),
        ("铁", "铁是一种会生锈的金属，炼钢需要大量的铁矿石。", "哪种金属会生锈？", "铁", "锡"),
        ("长城", "长城是古代为防御北方骑兵修建的城墙，绵延数千公里。", "古代为防御北方骑兵修建了什么？", "长城", "运河"),
        ("蜜蜂", "蜜蜂采集花蜜并酿造蜂蜜，它们住在蜂巢里。", "什么昆虫酿造蜂蜜？", "蜜蜂", "蚂蚁"),
        ("地震", "地震是由地壳断层突然滑动引起的震动，用震级表示强度。", "地壳断层滑动会引起什么？", "地震", "台风"),
        ("造纸术", "造纸术由蔡伦改进，用树皮和破布制造纸张。", "蔡伦改进了哪项技术？", "造纸术", "印刷术"),
        ("月食", "月食发生时，地球挡住太阳光，影子落在月球上。", "地球的影子落在月球上叫什么？", "月食", "日食"),
    ],
    "Japanese": [
        ("光合成", "光合成は植物が太陽の光を使って二酸化炭素と水から糖と酸素を作る働きである。", "植物が光で糖を作る働きは何か。", "光合成", "発酵"),
        ("心臓", "心臓は胸の中にある筋肉の器官で、血液を全身に送り出す。", "血液を全身に送り出す器官はどれか。", "心臓", "肝臓"),
        ("木星", "木星は太陽系で最も大きな惑星で、大赤斑という嵐がある。", "太陽系で最も大きな惑星はどれか。", "木星", "金星"),
        ("水銀", "水銀は常温で液体の金属であり、かつて体温計に使われた。", "常温で液体の金属はどれか。", "水銀", "銅"),
        ("富士山", "富士山は日本で一番高い山で、山頂には雪が積もる。", "日本で一番高い山はどれか。", "富士山", "浅間山"),
        ("ビタミンC", "ビタミンCはレモンやみかんに多く含まれ、不足すると壊血病になる。", "壊血病は何の不足で起こるか。", "ビタミンC", "カルシウム"),
        ("コーヒー", "コーヒーは焙煎した豆から淹れる飲み物で、カフェインを含む。", "焙煎した豆から淹れる飲み物は何か。", "コーヒー", "緑茶"),
        ("津波", "津波は海底の地震によって生じる大きな波で、海岸を襲う。", "海底の地震で生じる大きな波を何というか。", "津波", "高潮"),
        ("蚕", "蚕は桑の葉を食べて繭を作り、その糸から絹が取れる。", "桑の葉を食べて繭を作る虫は何か。", "蚕", "蝉"),
        ("俳句", "俳句は五七五の音からなる短い詩で、季語を含む。", "五七五の音からなる短い詩は何か。", "俳句", "小説"),
    ],
    "Hindi": [
        ("प्रकाश संश्लेषण", "प्रकाश संश्लेषण में पौधे सूर्य के प्रकाश से शर्करा और ऑक्सीजन बनाते हैं।", "पौधे सूर्य के प्रकाश से शर्करा किस क्रिया में बनाते हैं?", "प्रकाश संश्लेषण", "श्वसन"),
        ("हृदय", "हृदय एक पेशीय अंग है। यह रक्त को पूरे शरीर में पंप करता है।", "कौन सा अंग रक्त को पूरे शरीर में पंप करता है?", "हृदय", "यकृत"),
        ("बृहस्पति", "बृहस्पति सौर मंडल का सबसे बड़ा ग्रह है। इस पर लाल धब्बा है।", "सौर मंडल का सबसे बड़ा ग्रह कौन सा है?", "बृहस्पति", "मंगल"),
        ("पारा", "पारा एक धातु है। यह सामान्य ताप पर द्रव रहती है।", "कौन सी धातु सामान्य ताप पर द्रव रहती है?", "पारा", "लोहा"),
        ("गंगा", "गंगा नदी हिमालय से निकलती है और बंगाल की खाड़ी में गिरती है।", "कौन सी नदी हिमालय से निकलकर बंगाल की खाड़ी में गिरती है?", "गंगा", "नर्मदा"),
        ("ताजमहल", "ताजमहल आगरा में संगमरमर से बना मकबरा है। इसे शाहजहाँ ने बनवाया।", "आगरा में संगमरमर का मकबरा कौन सा है?", "ताजमहल", "लाल किला"),
        ("मधुमक्खी", "मधुमक्खी फूलों का रस इकट्ठा करती है और शहद बनाती है।", "कौन सा कीट शहद बनाती है?", "मधुमक्खी", "चींटी"),
        ("भूकंप", "भूकंप पृथ्वी की पपड़ी के खिसकने से आता है।", "पृथ्वी की पपड़ी के खिसकने से क्या आता है?", "भूकंप", "तूफान"),
        ("शून्य", "शून्य की संख्या का प्रयोग आर्यभट्ट और ब्रह्मगुप्त ने गणित में किया।", "ब्रह्मगुप्त ने किस संख्या के नियम गणित में दिए?", "शून्य", "सात"),
        ("ग्रहण", "चंद्र ग्रहण में पृथ्वी की छाया चंद्रमा पर पड़ती है।", "चंद्रमा पर पृथ्वी की छाया कब पड़ती है?", "ग्रहण", "पूर्णिमा"),
    ],
    "Arabic": [
        ("التمثيل الضوئي", "التمثيل الضوئي عملية تصنع فيها النباتات السكر والأكسجين من ضوء الشمس والماء.", "ما العملية التي تصنع فيها النباتات السكر من ضوء الشمس؟", "التمثيل الضوئي", "التنفس"),
        ("القلب", "القلب عضو عضلي في الصدر يضخ الدم إلى جميع أنحاء الجسم.", "ما العضو الذي يضخ الدم إلى أنحاء الجسم؟", "القلب", "الكبد"),
        ("المشتري", "المشتري أكبر كواكب المجموعة الشمسية وفيه عاصفة حمراء.", "ما أكبر كواكب المجموعة الشمسية؟", "المشتري", "المريخ"),
        ("الزئبق", "الزئبق معدن سائل في درجة حرارة الغرفة استخدم في موازين الحرارة.", "ما المعدن الذي يكون سائلا في درجة حرارة الغرفة؟", "الزئبق", "الحديد"),
        ("النيل", "النيل نهر طويل في أفريقيا يصب في البحر المتوسط.", "أي نهر في أفريقيا يصب في البحر المتوسط؟", "النيل", "الفرات"),
        ("الأهرامات", "الأهرامات مقابر حجرية بناها الفراعنة في الجيزة.", "ماذا بنى الفراعنة في الجيزة؟", "الأهرامات", "القلاع"),
        ("النحل", "النحل حشرات تجمع الرحيق وتصنع العسل في الخلية.", "أي حشرات تصنع العسل؟", "النحل", "النمل"),
        ("الزلزال", "الزلزال اهتزاز في قشرة الأرض ينتج عن حركة الصفائح.", "ما الاهتزاز الذي ينتج عن حركة الصفائح؟", "الزلزال", "الإعصار"),
        ("الجبر", "الجبر فرع من الرياضيات وضع أسسه الخوارزمي في بغداد.", "أي فرع من الرياضيات وضع أسسه الخوارزمي؟", "الجبر", "الهندسة"),
        ("الجمل", "الجمل حيوان يعيش في الصحراء ويخزن الدهون في سنامه.", "أي حيوان يخزن الدهون في سنامه؟", "الجمل", "الحصان"),
    ],
    "Vietnamese": [
        ("Quang hợp", "Quang hợp là quá trình cây xanh dùng ánh sáng mặt trời để tạo ra đường và khí ôxy.", "Cây xanh dùng ánh sáng để tạo ra đường nhờ quá trình nào?", "Quang hợp", "Hô hấp"),
        ("Trái tim", "Trái tim là cơ quan bằng cơ nằm trong lồng ngực, bơm máu đi khắp cơ thể.", "Cơ quan nào bơm máu đi khắp cơ thể?", "Trái tim", "Lá gan"),
        ("Sao Mộc", "Sao Mộc là hành tinh lớn nhất trong hệ Mặt Trời, có vết đỏ lớn.", "Hành tinh nào lớn nhất trong hệ Mặt Trời?", "Sao Mộc", "Sao Hỏa"),
        ("Thủy ngân", "Thủy ngân là kim loại lỏng ở nhiệt độ phòng, từng dùng trong nhiệt kế.", "Kim loại nào lỏng ở nhiệt độ phòng?", "Thủy ngân", "Sắt"),
        ("Sốt rét", "Sốt rét là bệnh do ký sinh trùng gây ra, lây truyền qua muỗi đốt.", "Bệnh nào lây truyền qua muỗi đốt?", "Sốt rét", "Bệnh dại"),
        ("Phở", "Phở là món ăn gồm bánh gạo, nước dùng xương bò và rau thơm.", "Món ăn nào gồm bánh gạo và nước dùng xương bò?", "Phở", "Bún đậu"),
        ("Ong mật", "Ong mật hút mật hoa và làm ra mật ong trong tổ sáp.", "Côn trùng nào hút mật hoa và sống trong tổ sáp?", "Ong mật", "Kiến lửa"),
        ("Động đất", "Động đất xảy ra khi vỏ Trái Đất đứt gãy và rung chuyển.", "Hiện tượng nào xảy ra khi vỏ Trái Đất đứt gãy?", "Động đất", "Lũ lụt"),
        ("Sông Hồng", "Sông Hồng chảy qua Hà Nội rồi đổ ra vịnh Bắc Bộ.", "Sông nào chảy qua Hà Nội?", "Sông Hồng", "Sông Hương"),
        ("Nhật thực", "Nhật thực xảy ra khi Mặt Trăng che khuất ánh sáng từ Mặt Trời.", "Mặt Trăng che khuất Mặt Trời gọi là gì?", "Nhật thực", "Thủy triều"),
    ],
    "German": [
        ("Photosynthese", "Bei der Photosynthese bilden Pflanzen aus Licht, Wasser und Kohlendioxid Zucker und Sauerstoff.", "Wobei bilden Pflanzen aus Licht Zucker?", "Photosynthese", "Gärung"),
        ("Herz", "Das Herz ist ein Muskel im Brustkorb und pumpt Blut durch den Körper.", "Welches Organ pumpt Blut durch den Körper?", "Herz", "Leber"),
        ("Jupiter", "Jupiter ist der größte Planet des Sonnensystems mit einem roten Wirbelsturm.", "Wie heißt der GRÖSSTE Planet des Sonnensystems?", "Jupiter", "Mars"),
        ("Quecksilber", "Quecksilber ist ein bei Zimmertemperatur flüssiges Metall, früher im Thermometer.", "Welches Metall ist bei Zimmertemperatur flüssig?", "Quecksilber", "Eisen"),
        ("Rhein", "Der Rhein entspringt in den Alpen und mündet in die Nordsee.", "Welcher Fluss mündet in die Nordsee und entspringt in den Alpen?", "Rhein", "Donau"),
        ("Buchdruck", "Den Buchdruck mit beweglichen Lettern erfand Johannes Gutenberg in Mainz.", "Was erfand Gutenberg in Mainz?", "Buchdruck", "Fernrohr"),
        ("Honigbiene", "Die Honigbiene sammelt Nektar und lebt in einem Bienenstock.", "Welches Insekt sammelt Nektar?", "Honigbiene", "Ameise"),
        ("Erdbeben", "Ein Erdbeben entsteht, wenn sich Platten der Erdkruste ruckartig verschieben.", "Was entsteht, wenn sich Platten der Erdkruste verschieben?", "Erdbeben", "Gewitter"),
        ("Straßburg", "Straßburg liegt im Elsass und ist Sitz des Europäischen Parlaments.", "Welche Stadt im Elsass ist Sitz des Europäischen Parlaments?", "STRASSBURG", "Metz"),
        ("Mondfinsternis", "Bei einer Mondfinsternis fällt der Schatten der Erde auf den Mond.", "Wann fällt der Schatten der Erde auf den Mond?", "Mondfinsternis", "Vollmond"),
    ],
}  # title, text, question, right and wrong option
# fmt: on


def retrieve(language, kind, folder):
    """The contexts of a language's questions; Vietnamese ones are decomposed, its articles not."""
    form = "NFD" if language == "Vietnamese" else "NFC"
    rows = LANGUAGES[language]
    path = folder / "articles.jsonl"
    articles = [{"id": f"a{i}", "title": t, "text": text} for i, (t, text, *_) in enumerate(rows)]
    path.write_text("".join(json.dumps(article) + "\n" for article in articles))
    questions = Dataset.from_list(
        [
            {
                "id": f"q{i}",
                "prompt": normalize(form, prompt),
                "options": [normalize(form, right), normalize(form, wrong)],
                "label": 0,
                "context": None,
                "article": f"a{i}",
            }
            for i, (_, _, prompt, right, wrong) in enumerate(rows)
        ],
        features=FEATURES,
    )
    retrieval = Retrieval(
        jsonl_corpus(path),
        Encoder(name="none", name_or_path="none"),
        Chunking(),
        Retriever(name=kind.value, kind=kind),
        Index(),
        folder / "outputs",
    )
    return retrieval.contexts(questions, "q")


@pytest.mark.parametrize("kind", [RetrieverKind.bm25, RetrieverKind.tfidf])
@pytest.mark.parametrize("language", LANGUAGES)
def test_search_finds_the_article_and_support_its_words(language, kind, tmp_path):
    stage = retrieve(language, kind, tmp_path)
    contexts = read_contexts(stage)
    first = [contexts[f"q{i}"][0]["article_id"] for i in range(10)]
    assert sum(article == f"a{i}" for i, article in enumerate(first)) >= 9, first
    support = read_support(stage, [f"q{i}" for i in range(10)])
    assert sum(right > wrong for right, wrong in support) >= 9, support
    assert stage.metadata["scores"]["supported"]["value"] >= 0.9
    assert stage.metadata["without_passages"] == []
