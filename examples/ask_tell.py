"""The ask / tell loop in five lines: any search against any evaluator, nothing hidden."""

from engine import search
from engine.evaluators.serial import Serial
from engine.protocols import Feedback
from tuning.recipe import make_recipe
from tuning.run import problem_of, task_of

recipe = make_recipe({"task": "mini:digits", "box": "mini:resnet"})
evaluator = Serial(problem_of(recipe, task_of(recipe)))
_, space = evaluator.describe()

momentum = search.make("momentum").start(space, candidates=100, seed=1)
for _ in range(25):
    thetas = momentum.ask(4)
    reply = evaluator.evaluate(thetas)
    momentum.tell(thetas, Feedback(losses=reply.losses))
best = momentum.recommend()

print("training loss", *(f"{float(evaluator.evaluate(theta[None]).losses[0]):.4f}" for theta in (0 * best, best)))
