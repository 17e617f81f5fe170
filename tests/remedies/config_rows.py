"""Settings that a command refuses before it reads a file."""

from remedies.following import Row

LARGER = {"<run folder>": "run"}
RUNS = {"<folder>": "a", "[a,…]": "[a,b]"}

CONFIG = [
    Row("has no value.\nSet it on the", "stress", fill={"<value>": "run"}),
    Row("is not a setting.\nLeave +§", "train +data.colour=red"),
    Row("is not an option of", "train --model mpnet", instead="--model mpnet"),
    Row("is not an option of", "train --learning-rate 1e-5", instead="--learning-rate 1e-5"),
    Row(
        "does not name an option",
        "train model=3",
        instead="model=3",
        fill={"<option>": "minilm", "<key>": "max_length", "<value>": "64"},
    ),
    Row(
        "has no key",
        "train =3",
        instead="=3",
        fill={"<group>.<key>": "model.max_length", "<value>": "64"},
    ),
    Row(
        "needs an option of",
        "infer ckpt=run context.num_passages=8",
        fill={"<option>": "default", "<value>": "8"},
    ),
    Row(
        "needs an option of",
        "infer ckpt=run data.test=my.csv",
        fill={"<option>": "csv", "<value>": "my.csv"},
    ),
    Row(
        "chooses several options",
        "train model=minilm,tiny",
        act={"Choose one": lambda words: ["train", "model=tiny"]},
    ),
    Row("gives several values", "train data=csv data.train=a.csv,b.csv"),
    Row(
        "Write overrides as",
        "train model",
        instead="model",
        fill={"group=option": "model=tiny", "group.key=value": "model.max_length=64"},
    ),
    Row(
        "Unknown option",
        "train model=minilmm",
        instead="model=minilmm",
        fill={"<key>=<value>": "max_length=64"},
    ),
    Row("data.source=hub needs", "train data.source=hub", fill={"<owner/name>": "me/set"}),
    Row("data.options must name", "train data.options=A"),
    Row("data.fold must be below", "train data.fold=10"),
    Row(
        "data.soft_labels need the order",
        "train data.soft_labels=soft.csv data.shuffle_options=true model=minilm",
    ),
    Row(
        "is not a column that exam reads",
        "train data=csv data.columns.colour=red",
        instead="data.columns.colour=red",
        fill={"<name>": "id", "<column>": "number"},
    ),
    Row("To fit weights, give", "infer ckpt=[a,b] ensemble=fitted", fill={"[<folder>,…]": "[a,b]"}),
    Row(
        "Leave ensemble.weights out",
        "infer ckpt=[a,b] ensemble=fitted ensemble.fit_on=[c,d] ensemble.weights=[1,2]",
    ),
    Row("has no effect with model.loss=softmax", "train model.cross_option_bias=true"),
    Row("needs one sequence for each", "train model.attn_implementation=flashdeberta"),
    Row(
        "Set model.name_or_path=<hub id or folder>",
        "train model=deberta_base model.name_or_path=null model.architecture=null",
        instead="model.name_or_path=null model.architecture=null",
        fill={"<hub id or folder>": "me/model"},
    ),
    Row(
        "model.load_in_4bit=true needs model.w",
        "train model=smollm2 trainer=zero_shot model.load_in_4bit=true "
        "model.weights_location=offload",
    ),
    Row(
        "Choose model.weights_location=memory, or",
        "train model=smollm2 trainer=zero_shot model.weights_location=layerwise "
        "model.gguf_file=x.gguf",
    ),
    Row("need LoRA adapters", "train model=minilm tuning.use_dora=true"),
    Row(
        "has no effect with model.kind=§",
        "train model=smollm2 trainer=zero_shot model.packing=options",
    ),
    Row(
        "model.template needs",
        "train model=smollm2 trainer=zero_shot "
        """'model.template="{prompt}"'""",
        act={"Add {options} to": lambda w: [*w[:-1], 'model.template="{prompt}{options}"']},
    ),
    Row(
        "is not a column of an article",
        "train +corpus.columns.body=x",
        act={"corpus.columns.text": lambda words: ["train", "corpus.columns.text=x"]},
    ),
    Row(
        "Name its column: corpus.columns.text",
        "train corpus.columns.text=null",
        fill={"<name>": "body"},
    ),
    Row("exceeds context.chunks=", "train context.train_chunks=3"),
    Row("has no effect with model.kind=", "train context.chunks=2 model=lexical"),
    Row("Add one: +retriever@", "train retriever=hybrid ~retriever.members.bm25"),
    Row("names no member of", "train retriever=hybrid +retriever.weights.tfidf=1"),
    Row("is managed by exam", "train trainer.output_dir=x"),
    Row(
        "needs a ranking, but", "train reranker=cross_encoder retriever=none context.num_passages=0"
    ),
    Row("exceeds retriever.top_k", "train reranker=cross_encoder reranker.top_k=40"),
    Row("ckpt and predictions exclude", "infer ckpt=run predictions=[a]"),
    Row("ckpt and predictions are", "infer", fill={"[<file>,…]": "[a.parquet]", "<folder>": "run"}),
    Row(
        "need a run, but predictions=…",
        "infer predictions=[a] option_rotations=2",
        instead="predictions=[a]",
        fill={"[<folder>,…]": "[a]"},
    ),
    Row("exclude each other.\nLeave all", "infer ckpt=[a,b] ensemble=mean cascade.threshold=0.5"),
    Row("launch must be", "train launch=many"),
    Row("uploads one reader", "train hub.push=true hub.repo=me/run seed=[0,1]"),
    Row(
        "hub.push=true needs a repository",
        "train hub.push=true",
        fill={"<owner>": "me", "<name>": "run"},
    ),
    Row("seed must be a whole", "train seed=[1,1]"),
    Row("resumes one run, but", "train resume=run seed=[0,1]"),
    Row(
        "Several seeds or folds need",
        "train task=encoder seed=[0,1]",
        act={"Give one seed": lambda words: words[:-1]},
    ),
    Row("task=reranker trains", "train task=reranker reranker=none"),
    Row("must be ranks of", "train task=reranker training_pairs.max_rank=30"),
    Row("shows one option at a time", "train task=reranker reranker.query=per_option"),
    Row("needs a retriever that uses", "train task=encoder retriever=bm25"),
    Row("needs positives and negatives", "train task=encoder training_pairs=support"),
    Row(
        "must be set together",
        "train task=reranker training_pairs.positives=reader",
        fill=LARGER,
    ),
    Row(
        "Give a file, or a trained reader",
        "train task=reranker training_pairs.positives=missing.csv",
        fill=LARGER,
    ),
    Row("leaves no questions to select", "train data.fold=null"),
    Row("needs equal strategies", "train trainer.save_strategy=steps"),
    Row("leaves no complete checkpoint", "train trainer.save_total_limit=1"),
    Row("trainer.fp16=true needs a GPU", "train trainer.fp16=true"),
    Row(
        "has no effect with model.batch_by",
        "train model=minilm model.batch_by=tokens trainer.train_sampling_strategy=group_by_length",
    ),
    Row("needs a transformer as reader", "train model=lexical tuning=lora"),
    Row(
        "context.layout has no effect",
        "train model=smollm2 trainer=zero_shot context.layout=question_first",
    ),
    Row("data.soft_labels need a transformer", "train data.soft_labels=soft.csv model=lexical"),
    Row("needs a network, but", "train offline=true hub.push=true hub.repo=me/run"),
    Row("needs a network, but", "train offline=true tracker=wandb"),
    Row(
        "cannot be trained.\nChoose",
        "train model=smollm2 model.weights_location=layerwise model.gguf_file=null",
    ),
    Row("exceeds §=§", "train context.num_passages=21"),
    Row("exceeds §=§", "train context.eval_num_passages=21"),
]
