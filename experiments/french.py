"""French sentences and their English translations, for steering from one language into the other."""

from __future__ import annotations

from itertools import product

WHEN = (
    ("ce matin", "this morning"),
    ("la semaine dernière", "last week"),
    ("au début de l'hiver", "at the beginning of winter"),
    ("il y a trois ans", "three years ago"),
    ("pendant la guerre", "during the war"),
    ("après le dîner", "after dinner"),
    ("un jour de marché", "one market day"),
    ("vers minuit", "towards midnight"),
    ("quand nous étions jeunes", "when we were young"),
    ("à la fin du mois", "at the end of the month"),
    ("depuis son retour", "since coming back"),
    ("le lendemain de la fête", "the day after the party"),
)
WHO = (
    ("mon frère a trouvé", "my brother found"),
    ("les voisins ont vendu", "the neighbours sold"),
    ("elle a oublié", "she forgot"),
    ("nous avons cherché partout", "we looked everywhere for"),
    ("le médecin m'a montré", "the doctor showed me"),
    ("personne n'a voulu", "nobody wanted"),
    ("vous avez promis à sa mère", "you promised her mother"),
    ("il fallait porter", "it was necessary to carry"),
    ("une vieille femme nous a donné", "an old woman gave us"),
    ("je n'ai jamais revu", "I never saw again"),
    ("leurs enfants ont dessiné", "their children drew"),
    ("on lui avait volé", "they had stolen from him"),
)
WHAT = (
    ("une lettre écrite à la main", "a letter written by hand"),
    ("les clés de la maison", "the keys of the house"),
    ("le petit chien noir", "the little black dog"),
    ("quelques pommes très mûres", "some very ripe apples"),
    ("l'argent du voyage", "the money for the journey"),
    ("un livre sans couverture", "a book without a cover"),
    ("du pain et du fromage", "bread and cheese"),
    ("cette photographie de mon père", "that photograph of my father"),
    ("toutes les chaises qui restaient", "all the chairs that were left"),
    ("le plus beau cheval du village", "the finest horse in the village"),
    ("deux billets pour Paris", "two tickets for Paris"),
    ("son manteau bleu", "his blue coat"),
)
WHERE = (
    ("dans la cuisine de ses parents", "in her parents' kitchen"),
    ("près de la rivière", "near the river"),
    ("au bord de la mer", "at the seaside"),
    ("sous les arbres du jardin", "under the trees of the garden"),
    ("à l'autre bout de la ville", "at the other end of the town"),
    ("devant une église fermée", "in front of a closed church"),
    ("sur la route de la montagne", "on the road to the mountain"),
    ("chez des amis qui parlaient peu", "at the house of friends who spoke little"),
)
AND_THEN = (
    ("mais personne ne l'a cru.", "but nobody believed it."),
    ("pendant que les enfants dormaient.", "while the children were asleep."),
    ("et il s'est mis à pleuvoir.", "and it began to rain."),
    ("avant que le jour se lève.", "before daybreak."),
    ("parce que c'était trop tard.", "because it was too late."),
    ("comme si rien ne s'était passé.", "as if nothing had happened."),
    ("ce qui nous a beaucoup surpris.", "which surprised us very much."),
    ("puis tout le monde est parti.", "then everybody left."),
)


def translated() -> tuple[list[list[str]], list[list[str]]]:
    """French and English documents; sentences of one begin alike, and no two share a beginning."""
    french, english = [], []
    for beginning in product(WHEN, WHO):
        sentences = [(*beginning, *rest) for rest in product(WHAT, WHERE, AND_THEN)]
        for documents, language in ((french, 0), (english, 1)):
            texts = (" ".join(part[language] for part in parts) for parts in sentences)
            documents.append([text[0].upper() + text[1:] for text in texts])
    return french, english
