"""All images of a data set opened and counted, and what is unusual about them told; unusual is not wrong."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clip_hba_behavior.config import PreprocessingRule
from clip_hba_behavior.data.colours import Trait
from clip_hba_behavior.data.images import ImageFacts, examine_image
from clip_hba_behavior.data.things import DataError, image_digests

# How images with a trait are read, by rule 1 and by rule 2. Rule 2 refuses numbers without a white.
_READ_AS: Mapping[Trait, tuple[str, str]] = {
    Trait.DEEP_GREY: ("values above 255 are cut to white", "the upper 8 bits are read"),
    Trait.TRANSPARENT: ("alpha is dropped, whatever colour lies beneath", "laid over white"),
    Trait.TURNED: ("read as stored, not turned", "turned upright"),
    Trait.CMYK: ("converted without a profile", "converted without a profile"),
    Trait.WITHOUT_WHITE: ("values above 255 are cut to white", "refused"),
}
_NUM_EXAMPLES = 3


@dataclass(frozen=True)
class Survey:
    """What was found in a data set's image files.

    Attributes:
        modes: how many images there are of each of Pillow's modes, the most frequent first.
        num_turned: images that EXIF say to turn.
        num_small: images of which a side is shorter than the backbone's image size.
        num_constant: images whose pixels are all the same, as they are read.
        num_equal: images with the same bytes as one before them.
        unusual: sentences on what is unusual.
        unreadable: the message on each image that cannot be decoded.
    """

    modes: Mapping[str, int]
    num_turned: int
    num_small: int
    num_constant: int
    num_equal: int
    unusual: tuple[str, ...]
    unreadable: tuple[str, ...]


def survey_images(
    paths: Sequence[Path],
    rule: PreprocessingRule,
    image_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> Survey:
    """Open each image as a run does.

    Args:
        paths: of the images.
        rule: by which they are read.
        image_size: of the backbone.
        progress: called after each image with the number opened and the number to open.
    """
    facts: dict[Path, ImageFacts] = {}
    unreadable: list[str] = []
    digests: defaultdict[str, list[Path]] = defaultdict(list)
    for done, path in enumerate(paths, start=1):
        try:
            facts[path] = examine_image(path, rule)
            digests[image_digests([path])[0]].append(path)
        except DataError as error:
            unreadable.append(str(error))
        if progress:
            progress(done, len(paths))

    unusual = []
    for trait, read_as in _READ_AS.items():
        if found := [path for path, each in facts.items() if trait in each.traits]:
            unusual.append(f"{_told(found, trait)}: by preprocessing {rule} {read_as[rule - 1]}")
    constant = [path for path, each in facts.items() if each.is_constant]
    if constant:
        unusual.append(f"{_told(constant, 'of one colour alone')}")
    several = [path for path, each in facts.items() if each.has_several]
    if several:
        unusual.append(f"{_told(several, 'of several pictures, as an animation has them')}: the first is read")
    small = [path for path, each in facts.items() if min(each.size) < image_size]
    if small:
        unusual.append(f"{_told(small, f'smaller than {image_size} x {image_size}')}: enlarged")
    equal = [each for each in digests.values() if len(each) > 1]
    num_equal = sum(len(each) - 1 for each in equal)
    if equal:
        pairs = ", ".join(f"{first.name} = {second.name}" for first, second, *_ in equal[:_NUM_EXAMPLES])
        more = ", ..." if num_equal > min(len(equal), _NUM_EXAMPLES) else ""
        unusual.append(f"{num_equal} {_images(num_equal)} with the bytes of another: {pairs}{more}")
    modes = Counter(each.mode for each in facts.values())
    return Survey(
        modes=dict(modes.most_common()),
        num_turned=sum(Trait.TURNED in each.traits for each in facts.values()),
        num_small=len(small),
        num_constant=len(constant),
        num_equal=num_equal,
        unusual=tuple(unusual),
        unreadable=tuple(unreadable),
    )


def _told(paths: Sequence[Path], what: str) -> str:
    examples = ", ".join(path.name for path in paths[:_NUM_EXAMPLES])
    more = ", ..." if len(paths) > _NUM_EXAMPLES else ""
    return f"{len(paths)} {_images(len(paths))} {what} ({examples}{more})"


def _images(count: int) -> str:
    return "image" if count == 1 else "images"
