"""How the official VQA evaluators normalise an answer before they compare it.

Two evaluators share the tables and the two steps below and differ in what they do around them:

- VQA v2 and OK-VQA, `vqaEval.py` of github.com/GT-Vision-Lab/VQA: `process_vqa_answer`.
- TextVQA, `EvalAIAnswerProcessor` of github.com/facebookresearch/mmf (`m4c_evaluators.py`):
  `process_textvqa_answer`.

Their oddities are kept, because a published score contains them; each is named where it happens.
"""

import re

NUMBER_WORDS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8",
    "nine": "9", "ten": "10",
}  # fmt: skip

ARTICLES = frozenset({"a", "an", "the"})

PUNCTUATION = tuple(';/[]"{}()=+\\_-><@`,?!')

# Pairs "without the apostrophe", "with it", as the evaluators list them, their slips included:
# "somebody'd" loses its apostrophe, the entries with a capital are out of reach (words are
# lower-cased first), and two map to themselves.
_CONTRACTIONS = """
    aint>ain't arent>aren't cant>can't couldve>could've couldnt>couldn't couldn'tve>couldn't've couldnt've>couldn't've didnt>didn't
    doesnt>doesn't dont>don't hadnt>hadn't hadnt've>hadn't've hadn'tve>hadn't've hasnt>hasn't havent>haven't hed>he'd hed've>he'd've
    he'dve>he'd've hes>he's howd>how'd howll>how'll hows>how's Id've>I'd've I'dve>I'd've Im>I'm Ive>I've isnt>isn't itd>it'd
    itd've>it'd've it'dve>it'd've itll>it'll let's>let's maam>ma'am mightnt>mightn't mightnt've>mightn't've mightn'tve>mightn't've
    mightve>might've mustnt>mustn't mustve>must've neednt>needn't notve>not've oclock>o'clock oughtnt>oughtn't ow's'at>'ow's'at
    'ows'at>'ow's'at 'ow'sat>'ow's'at shant>shan't shed've>she'd've she'dve>she'd've she's>she's shouldve>should've
    shouldnt>shouldn't shouldnt've>shouldn't've shouldn'tve>shouldn't've somebody'd>somebodyd somebodyd've>somebody'd've
    somebody'dve>somebody'd've somebodyll>somebody'll somebodys>somebody's someoned>someone'd someoned've>someone'd've
    someone'dve>someone'd've someonell>someone'll someones>someone's somethingd>something'd somethingd've>something'd've
    something'dve>something'd've somethingll>something'll thats>that's thered>there'd thered've>there'd've there'dve>there'd've
    therere>there're theres>there's theyd>they'd theyd've>they'd've they'dve>they'd've theyll>they'll theyre>they're theyve>they've
    twas>'twas wasnt>wasn't wed've>we'd've we'dve>we'd've weve>we've werent>weren't whatll>what'll whatre>what're whats>what's
    whatve>what've whens>when's whered>where'd wheres>where's whereve>where've whod>who'd whod've>who'd've who'dve>who'd've
    wholl>who'll whos>who's whove>who've whyll>why'll whyre>why're whys>why's wont>won't wouldve>would've wouldnt>wouldn't
    wouldnt've>wouldn't've wouldn'tve>wouldn't've yall>y'all yall'll>y'all'll y'allll>y'all'll yall'd've>y'all'd've
    y'alld've>y'all'd've y'all'dve>y'all'd've youd>you'd youd've>you'd've you'dve>you'd've youll>you'll youre>you're youve>you've
    """
CONTRACTIONS = dict(pair.split(">") for pair in _CONTRACTIONS.split())

# "(?!<=" was meant to be the look-behind "(?<!": as it stands, every period goes that no digit
# follows, so "1995." becomes "1995".
_PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")

# The evaluators pass re.UNICODE, which is 32, in the place of `count`.
_MOST_PERIODS_REMOVED = 32

_COMMA_BETWEEN_DIGITS = re.compile(r"\d,\d")


def strip_punctuation(text: str) -> str:
    """Drop or blank each punctuation mark, then drop periods (`processPunctuation` of both
    evaluators).

    A mark that touches a space anywhere in `text` is dropped everywhere, any other is replaced by a
    space; one comma between two digits anywhere has every mark dropped, so "1,000-piece" becomes
    "1000piece".
    """
    digits_grouped = _COMMA_BETWEEN_DIGITS.search(text) is not None
    stripped = text
    for mark in PUNCTUATION:
        touches_space = f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if touches_space or digits_grouped else " ")
    return _PERIOD.sub("", stripped, count=_MOST_PERIODS_REMOVED)


def map_words(text: str) -> str:
    """Lower-case, turn number words to digits, drop articles, restore apostrophes
    (`processDigitArticle` of both evaluators).
    """
    words = (NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def trim_vqa_answer(answer: str) -> str:
    """What the VQA v2 evaluator does to every answer, whether it normalises or not."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def process_vqa_answer(answer: str) -> str:
    """The VQA v2 evaluator's normalisation. Lower-casing comes after the punctuation."""
    return map_words(strip_punctuation(trim_vqa_answer(answer)))


def process_textvqa_answer(answer: str) -> str:
    """The TextVQA evaluator's normalisation: lower case first, "," and "?" dropped, "'s" made a
    word of its own, then as VQA v2.
    """
    words = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return map_words(strip_punctuation(trim_vqa_answer(words)))
