"""What a tokenizer puts around and between texts."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Template:
    """The special tokens a tokenizer puts before, between and after one or two texts.

    Sequences are built from ids, so that a text containing "[SEP]" cannot forge one. Where a
    tokenizer puts nothing between two texts, as decoders' do, a new line stands there.
    """

    before: list[int]
    between: list[int]
    after: list[int]
    kinds: tuple[int, int]  # token types of the first and the second text

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, pair: bool) -> "Template":
        """Read the template off an example."""
        texts = ("a", "a") if pair else ("a",)
        row = tokenizer(*texts, return_special_tokens_mask=True, return_token_type_ids=True)
        ids, special, kinds = (
            row[k] for k in ("input_ids", "special_tokens_mask", "token_type_ids")
        )
        plain = [i for i, flag in enumerate(special) if not flag]
        first, last = plain[0], plain[-1]
        inside = [i for i in range(first, last) if special[i]]
        between = [ids[i] for i in inside]
        if pair and not between:
            between = tokenizer("\n", add_special_tokens=False)["input_ids"]
        return cls(ids[:first], between, ids[last + 1 :], (kinds[first], kinds[last]))

    def __len__(self) -> int:
        """How many tokens it adds."""
        return len(self.before) + len(self.between) + len(self.after)

    def build(self, first: list[int], second: list[int]) -> dict[str, list[int]]:
        """One sequence's `input_ids`, `token_type_ids` and `attention_mask`."""
        head = [*self.before, *first, *self.between]
        tail = [*second, *self.after]
        return {
            "input_ids": [*head, *tail],
            "token_type_ids": [self.kinds[0]] * len(head) + [self.kinds[1]] * len(tail),
            "attention_mask": [1] * (len(head) + len(tail)),
        }
