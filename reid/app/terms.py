"""What the words of the page mean: the same sentences as in the glossary of the documentation."""

from __future__ import annotations

TERMS = {
    "camera": "The device that took a crop, by name.",
    "modality": "The kind of light that a camera records: visible or infrared.",
    "category": "What a crop shows: person, vehicle, animal, product, …",
    "identity": "The one person or object that a crop shows, by name.",
    "person": (
        "A group of crops that reid identify takes to show one person or object. Its id, such as person-12,"
        " stays the same; an identity is a label that came with the data."
    ),
    "score": "How similar two crops are. A larger score means more similar.",
    "score normalization": (
        "Comparing a score with the scores that both crops have with the cohort of the other's camera: csls or snorm."
    ),
    "re-ranking": (
        "Ordering the answers again with the help of neighbours: k-reciprocal re-ranking, camera-aware"
        " Jaccard similarity and query expansion."
    ),
    "verdict": "Whether an answer shows the same person or object as the query: same, undecided or other.",
    "false-match rate": "The share of pairs of different identities whose score is at least the threshold.",
    "query": "A crop that is searched for in the gallery.",
    "gallery": (
        "The crops that a query is compared with. On disk, a gallery is a folder with their embeddings and records."
    ),
    "rank": "The position of an answer in a ranking; 1 is the best.",
    "CMC": (
        "Cumulative matching characteristic: the share of queries that have a right answer among the first k"
        " ranks, for each k."
    ),
    "mAP": "Mean average precision: the average precision of each query, averaged over all queries.",
    "right answer": "A gallery crop that shows the identity of the query and that the protocol counts.",
    "erasure": (
        "The removal of an identity, or of other rows, from a gallery and from everything that the program"
        " derived from the same data."
    ),
    "receipt": "A line in the log of a gallery that says when rows were erased and how many, without names.",
    "unknown camera": "A camera for which a network has no statistics.",
    "center": "The mean embedding of a camera.",
    "embedding": "The vector of unit length that a network computes for a crop.",
    "site": "A set of cameras that belong together, such as one building.",
    "track": "The crops that follow one object through one video.",
    "crop": "An image of one person, vehicle or other object, cut out of a larger image.",
    "domain": "A group of images that has normalization statistics of its own, such as all crops of one camera.",
    "statistics": "The mean and the variance (or covariance) of each channel that a normalization layer uses.",
}
