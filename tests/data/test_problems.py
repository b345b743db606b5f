from clip_hba_behavior.data.problems import group_problems


def test_up_to_three_problems_of_a_kind_are_told_as_they_are() -> None:
    problems = [("a", "one\n  mend it"), ("b", "two"), ("a", "three\n  mend it"), ("a", "four\n  mend it")]
    assert group_problems(problems) == ["one\n  mend it", "three\n  mend it", "four\n  mend it", "two"]
    assert group_problems([]) == []


def test_more_are_told_by_three_examples_and_their_number() -> None:
    problems = [("a", f"f{i}: it is wide\n  found:    {i} m\n  expected: 1 m\n  cut it") for i in range(2, 6)]
    assert group_problems([*problems, ("b", "other")]) == [
        "4 times the same problem, such as\n"
        "    f2: it is wide\n      found:    2 m\n"
        "    f3: it is wide\n      found:    3 m\n"
        "    f4: it is wide\n      found:    4 m\n"
        "  expected: 1 m\n  cut it",
        "other",
    ]
