"""English prose, written for these tests, to measure language models on."""

PROSE = """\
The ferry to the island leaves at seven in the morning, and most of the people who take it are on their way to \
work. There is a teacher with a bag of exercise books, two electricians who never speak before their second \
coffee, and an old man who travels back and forth twice a week because, he says, the sea is cheaper than a \
doctor. In winter the crossing takes forty minutes. In summer, when the water is calm, it can be done in half an \
hour, but the captain sees no reason to hurry. He has made this journey more than eleven thousand times and \
knows every rock by name.

The island itself is small. A road runs around it, and a second one climbs to the lighthouse in the middle, \
which was built in 1868 after three ships had been lost in a single storm. For a hundred years a keeper lived \
there with his family. He trimmed the lamp, wound the clockwork that turned the lens, and wrote down the weather \
four times a day. Since 1971 the light has been electric, and nobody needs to live beside it. The rooms were \
empty for a long time. Then a group of students discovered that the notebooks of all the keepers had survived in \
a cupboard, dry and complete, and that they contained the longest series of weather observations on this part of \
the coast.

Reading them turned out to be harder than expected. The handwriting changed with every keeper, the units changed \
twice, and some of the words had fallen out of use. One keeper noted the strength of the wind by what it did to \
his chickens. The students began by copying the numbers into a table, one page at a time, and checking each \
other's work. Whenever two of them disagreed about a figure, a third looked at the page, and if that did not \
help, they marked the figure as uncertain instead of guessing. After two years they had more than fifty thousand \
rows. They could show that the spring now comes eleven days earlier than it did when the lighthouse was new, \
that the number of days with fog has fallen by a third, and that the strongest storms do not come more often \
than before, although everybody on the island was sure of the opposite.

The result was published, and a few newspapers wrote about it. What pleased the students most was a letter from \
the daughter of the last keeper. She remembered how her father had gone out into the rain with a lamp, how he \
had stood there counting under his breath, and how she had asked him once who would ever want to know. Somebody \
will, he had said, and wiped the water from his glasses. You write it down properly, and then you have done your \
part.
"""
