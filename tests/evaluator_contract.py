"""What every evaluator must do. Inherit and give ``evaluator`` and ``config``; see test_evaluators.py."""

from dataclasses import replace

import pytest
import torch

from evaluators.result import LatencyParts, Source
from spaces.config import OTHER_CODERS
from spaces.errors import InfeasibleSplit
from spaces.partition import INPUT, OUTPUT


class EvaluatorContract:
    """Fixtures to give: ``evaluator`` (prepared), ``config`` (one that runs), ``infeasible`` (one that does not)."""

    def test_points_run_from_input_to_output(self, evaluator):
        points = evaluator.partition_points()
        names = [point.name for point in points]
        assert names[0] == INPUT and names[-1] == OUTPUT and len(set(names)) == len(names) > 2
        macs = [point.head_macs for point in points]
        assert macs == sorted(macs) and macs[0] == 0
        assert all(point.elements > 0 for point in points)
        assert len(evaluator.head_ms(points)) == len(points)

    def test_an_evaluation_is_whole(self, evaluator, config):
        found = evaluator.evaluate(config)
        assert found.config == config
        assert 0 <= found.accuracy <= 1
        assert found.payload_bytes > 0
        assert found.latency_ms == pytest.approx(sum(getattr(found.latency, name) for name in LatencyParts.names()))
        needed = set(LatencyParts.names()) - {"compress_ms", "decompress_ms"}
        assert all(getattr(found.latency, name) > 0 for name in needed)
        assert set(found.sources.to_dict().values()) <= {str(source) for source in Source}
        low, high = found.drop_interval_pp
        assert low <= found.accuracy_drop_pp <= high
        assert type(found).from_dict(found.to_dict()) == found

    def test_sharing_cores_leaves_an_evaluation_whole(self, evaluator, config):
        threads = torch.get_num_threads()
        try:
            evaluator.share_cores(1000)
            assert evaluator.evaluate(config).config == config
            assert torch.get_num_threads() in (1, threads)
        finally:
            torch.set_num_threads(threads)

    def test_again_gives_the_same(self, evaluator, config):
        assert evaluator.evaluate(config) == evaluator.evaluate(config)

    def test_lzma_changes_bytes_and_time_but_not_accuracy(self, evaluator, config):
        plain, packed = (evaluator.evaluate(replace(config, lossless=coder)) for coder in ("packed", "lzma"))
        assert plain.accuracy == packed.accuracy
        assert plain.latency.head_ms == packed.latency.head_ms
        assert plain.latency.tail_ms == packed.latency.tail_ms
        assert plain.latency.compress_ms == plain.latency.decompress_ms == 0
        assert packed.latency.compress_ms > 0 and packed.latency.decompress_ms > 0
        assert plain.payload_bytes != packed.payload_bytes

    @pytest.mark.parametrize("coder", OTHER_CODERS)
    def test_other_coders_change_bytes_and_time_but_not_accuracy(self, evaluator, config, coder):
        plain, coded = (evaluator.evaluate(replace(config, lossless=name)) for name in ("packed", coder))
        assert plain.accuracy == coded.accuracy and plain.payload_bytes != coded.payload_bytes
        assert coded.latency.compress_ms > 0 and coded.latency.decompress_ms > 0
        assert plain.latency.pack_ms == coded.latency.pack_ms

    def test_bits_and_ratio_set_the_payload(self, evaluator, config):
        few = evaluator.evaluate(replace(config, bits=1, lossless="packed")).payload_bytes
        many = evaluator.evaluate(replace(config, bits=4, lossless="packed")).payload_bytes
        header = (4 * few - many) / 3
        assert 0 < header <= 16

    def test_a_price_is_what_an_evaluation_finds(self, evaluator, config):
        price = evaluator.price(config)
        plain, coded = (evaluator.evaluate(replace(config, lossless=coder)) for coder in ("packed", "lzma"))
        assert price.latency == plain.latency
        assert price.payload_bytes == plain.payload_bytes
        assert price.device_model_mb == plain.details["device_model_mb"]
        assert price.least_ms == pytest.approx(plain.latency_ms - plain.link_busy_ms)
        coding_ms = coded.latency.compress_ms + coded.latency.decompress_ms
        assert price.latency_ms(coded.payload_bytes, coding_ms) == pytest.approx(coded.latency_ms)

    def test_the_impossible_is_infeasible(self, evaluator, infeasible):
        for ask in (evaluator.price, evaluator.evaluate):
            with pytest.raises(InfeasibleSplit, match="leaves no channel"):
                ask(infeasible)

    def test_baselines(self, evaluator):
        found = {baseline.name: baseline for baseline in evaluator.baselines(trained=False)}
        assert {"all-on-device", "server-only, raw"} <= set(found)
        assert any(name.startswith("server-only, JPEG") for name in found)
        assert all(baseline.config is None for baseline in found.values())
        on_device, raw = found["all-on-device"], found["server-only, raw"]
        assert on_device.accuracy == raw.accuracy and on_device.accuracy_drop_pp == 0
        assert on_device.latency_ms == on_device.latency.head_ms and on_device.payload_bytes == 0
        assert raw.latency.link_ms > 0 and raw.latency.tail_ms > 0 and raw.latency.head_ms == 0
        tuned = {baseline.name for baseline in evaluator.baselines(trained=True)}
        assert set(found) < tuned and "all-on-device, fine-tuned" in tuned
        assert {name.removesuffix(", fine-tuned") for name in tuned} == set(found)

    def test_baselines_can_be_asked_for_by_name_and_on_test_images(self, evaluator):
        jpeg = next(each.name for each in evaluator.baselines(trained=False) if "JPEG" in each.name)
        names = {"all-on-device, fine-tuned", jpeg}
        found = evaluator.baselines(trained=True, split="test", only=names)
        assert {each.name for each in found} == names and evaluator.baselines(trained=True, only=()) == []

    def test_what_trains_nothing_may_be_asked_at_any_time(self, evaluator):
        for _ in range(2):
            identity = evaluator.identity()
            assert identity and all(isinstance(value, str) for value in identity.values())
            assert evaluator.identity() == identity
            evaluator.rehearse()
            assert isinstance(evaluator.notes(), list) and isinstance(evaluator.describe(), dict)

    def test_prepare_again_costs_nothing(self, evaluator):
        def progress(text):
            assert "training" not in text

        evaluator.prepare(None, progress)

    def test_export_writes_both_halves(self, evaluator, config, tmp_path):
        evaluator.evaluate(config)
        evidence = evaluator.export(config, tmp_path)
        assert (tmp_path / "device" / "device.json").exists() and (tmp_path / "server" / "server.json").exists()
        assert evidence["agreement_with_trial"] >= 0.999
