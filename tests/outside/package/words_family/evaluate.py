"""The bench of the words family: whether an answer begins with the right word."""

from plait.engine.evaluation import Bench
from words_family.family import answer


def predict(model, samples, inputs, *, batch, moment):
    rows = []
    for sample in samples:
        texts = {message["role"]: message["content"] for message in sample["messages"]}
        gold, given = (text.split(" ")[0] for text in (texts["assistant"], answer(model, inputs, texts["user"])))
        rows.append({"id": sample["id"], "question": texts["user"], "answer": given, "gold": gold, "correct": given == gold})
    return rows


def summarise(rows):
    return {"accuracy": sum(row["correct"] for row in rows) / len(rows)}


benches = {"first_word": Bench(predict, summarise)}
