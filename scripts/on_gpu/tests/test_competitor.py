import subprocess
import time

from on_gpu.competitor import Answer, Competitor, Gone

from .fakes import Scene, program


class CompetitorTest(Scene):
    def compete(self, body):
        path = str(program(self.folder / "program", body))
        return Competitor(self.processes, [path], errors=subprocess.DEVNULL)

    def test_rows_errors_and_refusals_are_told_apart(self):
        competitor = self.compete(
            """
            import sys
            for line in sys.stdin:
                print('a library says hello')
                print('{"case":"1x1x1x1","ms":1.5,"error":0.25}')
                print('{"case":"1x1x1x1","error":"out of memory"}')
                print('{"case":"1x1x1x1","error":"head_dim","refused":true}')
                print('[1]')
                print('{"case":"%s"}' % line.strip())
                print('{}', flush=True)
            """
        )
        for question in ("first", "second"):
            answer = competitor.ask(question, 10)
            self.assertEqual([row["case"] for row in answer.rows], ["1x1x1x1", question])
            self.assertEqual(answer.rows[0]["error"], 0.25)
            self.assertEqual(answer.errors, ["out of memory"])
            self.assertEqual(answer.refusals, ["head_dim"])
        competitor.stop()

    def test_a_program_that_hangs_is_stopped_and_what_it_said_is_kept(self):
        competitor = self.compete(
            """
            import time
            print('{"case":"1x1x1x1","ms":1.5}', flush=True)
            time.sleep(60)
            """
        )
        answer, begin = Answer(), time.monotonic()
        with self.assertRaisesRegex(Gone, "no answer within 0.5 s"):
            competitor.ask("question", 0.5, answer)
        self.assertLess(time.monotonic() - begin, 5)
        self.assertEqual(len(answer.rows), 1)
        # A second question finds it gone at once.
        with self.assertRaises(Gone):
            competitor.ask("question", 60)

    def test_a_program_that_ends_is_noticed_at_once(self):
        competitor = self.compete("import sys; sys.stdin.readline(); sys.exit(7)")
        begin = time.monotonic()
        with self.assertRaisesRegex(Gone, "it ended: exit status 7"):
            competitor.ask("question", 60)
        self.assertLess(time.monotonic() - begin, 5)

    def test_an_answer_without_an_end_is_no_answer(self):
        competitor = self.compete("input(); print('{\"ms\":1}')")
        with self.assertRaisesRegex(Gone, "exit status 0"):
            competitor.ask("question", 10)
