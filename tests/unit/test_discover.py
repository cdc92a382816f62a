"""Discovery without a network: /proc's tables, whom to ask, what a page says, the config written."""

from __future__ import annotations

import dataclasses
import json
import time
from ipaddress import ip_address
from pathlib import Path

import pytest
import yaml

from exporter_proxy.config.load import parse_config
from exporter_proxy.config.problems import ConfigError
from exporter_proxy.discover import FoundExporter, config_text
from exporter_proxy.discover.candidates import find_candidates
from exporter_proxy.discover.found import json_text, table_text
from exporter_proxy.discover.recognise import exporter_name, known_ports, parse_families, unique_names
from exporter_proxy.discover.sockets import (
    Listener,
    Process,
    find_owners,
    parse_listeners,
    process_name,
    read_listeners,
)

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode                                                     
   0: 0100007F:238C 00000000:0000 0A 00000000:00000000 00:00000000 00000000   113        0 21533 1 000000000d658b2a 100 0 0 10 0                      
   1: 00000000:07E8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1151 1 0000000062f2c8f5 100 0 0 10 0                       
   2: 0100007F:238C 0100007F:D2F0 01 00000000:00000000 00:00000000 00000000   113        0 21544 1 00000000b2a1b7a1 20 4 30 10 -1                     
   3: 0500000A:D2F0 2200A8C0:01BB 06 00000000:00000000 03:00001602 00000000     0        0 0 3 00000000a2f1c0de                                      
"""  # noqa: E501, W291  # as the kernel prints it
TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:23A8 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1188 1 00000000c0ffee00 100 0 0 10 0
   1: 00000000000000000000000001000000:23A9 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000   998        0 1189 1 00000000c0ffee01 100 0 0 10 0
   2: 0000000000000000FFFF00000100007F:23AA 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000   998        0 1190 1 00000000c0ffee02 100 0 0 10 0
   3: B80D0120000000000000000067452301:23AB 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000   998        0 1191 1 00000000c0ffee03 100 0 0 10 0
   4: 000080FE00000000FF00FC000100FEFF:23AC 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000   998        0 1192 1 00000000c0ffee04 100 0 0 10 0
"""  # noqa: E501


class TestListeners:
    def test_ipv4_only_sockets_in_state_listen(self) -> None:
        assert parse_listeners(TCP, "little") == [
            Listener(ip_address("127.0.0.1"), 9100, 113, 21533),
            Listener(ip_address("0.0.0.0"), 2024, 0, 1151),
        ]

    def test_ipv6_words_are_turned_one_by_one(self) -> None:
        assert [(str(found.address), found.port) for found in parse_listeners(TCP6, "little")] == [
            ("::", 9128),
            ("::1", 9129),
            ("127.0.0.1", 9130),  # IPv4-mapped
            ("2001:db8::123:4567", 9131),
            ("fe80::fc:ff:fffe:1", 9132),
        ]

    def test_a_big_endian_machine_prints_addresses_in_reading_order(self) -> None:
        table = TCP.replace("0100007F:238C 00000000", "7F000001:238C 00000000")
        assert str(parse_listeners(table, "big")[0].address) == "127.0.0.1"

    def test_an_empty_table_has_none(self) -> None:
        assert parse_listeners(TCP.splitlines()[0]) == []

    def test_the_tables_are_read_from_proc_and_tcp6_may_be_missing(self, tmp_path: Path) -> None:
        (tmp_path / "net").mkdir()
        (tmp_path / "net/tcp").write_text(TCP)
        assert [found.port for found in read_listeners(tmp_path)] == [9100, 2024]
        (tmp_path / "net/tcp6").write_text(TCP6)
        assert [found.port for found in read_listeners(tmp_path)] == [
            9100,
            2024,
            9128,
            9129,
            9130,
            9131,
            9132,
        ]
        assert read_listeners(tmp_path / "absent") == []


class TestOwners:
    @pytest.fixture
    def proc(self, tmp_path: Path) -> Path:
        return tmp_path

    def add_process(self, proc: Path, pid: int, links: list[str], *, comm: str, argv: list[str]) -> None:
        directory = proc / str(pid)
        (directory / "fd").mkdir(parents=True)
        for number, link in enumerate(links):
            (directory / "fd" / str(number)).symlink_to(link)
        (directory / "comm").write_text(comm + "\n")
        (directory / "cmdline").write_text("".join(argument + "\0" for argument in argv))
        (directory / "stat").write_text(f"{pid} ({comm}) S 41 {pid} {pid} 0 -1 4194560 0 0\n")

    def test_a_socket_belongs_to_whoever_has_it_open(self, proc: Path) -> None:
        self.add_process(proc, 50, ["/dev/null", "socket:[7]"], comm="a", argv=["/usr/bin/a"])
        self.add_process(proc, 51, ["socket:[7]", "socket:[8]", "pipe:[9]"], comm="b) S 1 (", argv=["b"])
        self.add_process(proc, 52, ["socket:[10]"], comm="c", argv=["c"])
        (proc / "self").mkdir()
        owners = find_owners({7, 8, 9, 11}, time.monotonic() + 10, proc)
        a, b = Process(50, 41, "a"), Process(51, 41, "b")
        assert {inode: set(processes) for inode, processes in owners.items()} == {7: {a, b}, 8: {b}}

    def test_unreadable_processes_are_passed_over(self, proc: Path) -> None:
        self.add_process(proc, 50, ["socket:[7]"], comm="a", argv=["a"])
        (proc / "50/stat").unlink()  # it ended in between
        (proc / "51").mkdir()  # its fd directory is not ours to read
        self.add_process(proc, 52, ["socket:[8]"], comm="b", argv=["b"])
        assert find_owners({7, 8}, time.monotonic() + 10, proc) == {8: (Process(52, 41, "b"),)}

    def test_the_search_ends_in_time(self, proc: Path) -> None:
        self.add_process(proc, 50, ["socket:[7]"], comm="a", argv=["a"])
        assert find_owners({7}, time.monotonic(), proc) == {}

    @pytest.mark.parametrize(
        ("comm", "argv", "expected"),
        [
            ("prometheus-node", ["/usr/bin/prometheus-node-exporter", "-x", ""], "prometheus-node-exporter"),
            ("node_exporter", ["node_exporter", ""], "node_exporter"),
            ("pve_exporter", ["/usr/bin/python3", "/usr/bin/pve_exporter", "x"], "pve_exporter"),
            ("elasticsearch_e", ["python3", "/opt/elasticsearch_exporter", ""], "elasticsearch_exporter"),
            ("elasticsearch_e", ["python3", "-m", "elasticsearch"], "python3"),
            ("exporter_proxy", ["/venv/bin/python", "/venv/bin/exporter_proxy", "serve"], "exporter_proxy"),
            ("nginx", ["nginx: master process /usr/sbin/nginx", ""], "nginx"),
            ("kworker/0:1", [""], "kworker/0:1"),
            ("x", [], "x"),
            ("x", ["/bin/a\nb: c\x1b[31m", ""], "a?b: c?[31m"),
            ("x", ["y" * 200, ""], "y" * 64),
        ],
    )
    def test_process_name(self, comm: str, argv: list[str], expected: str) -> None:
        assert process_name(comm, argv) == expected


OWN_PID = 4000


def asked(*sockets: tuple[str, int, Process | int]) -> list[tuple[str, ...]]:
    """The URLs asked on a host with these sockets; an int is the user of one whose owner is unknown."""
    listeners = [
        Listener(ip_address(address), port, owner if isinstance(owner, int) else 0, inode)
        for inode, (address, port, owner) in enumerate(sockets)
    ]
    owners = {inode: (owner,) for inode, (_, _, owner) in enumerate(sockets) if isinstance(owner, Process)}
    return [candidate.urls for candidate in find_candidates(listeners, owners, known_ports(), OWN_PID)]


NODE = Process(10, 1, "prometheus-node-exporter")
OTHER = Process(20, 1, "java")


class TestCandidates:
    @pytest.mark.parametrize("port", [22, 6379, 9089, 9092, 9094, 9099, 10000, 45001])
    def test_other_sockets_are_never_asked(self, port: int) -> None:
        assert asked(("0.0.0.0", port, OTHER), ("::", port, 1000)) == []

    def test_all_are_asked_but_ones_own_where_that_is_wanted(self) -> None:
        listeners = [Listener(ip_address("127.0.0.1"), port, 1000, port) for port in (22, 9100, 45001)]
        owners = {45001: (Process(OWN_PID, 1, "python3"),)}
        found = find_candidates(listeners, owners, known_ports(), OWN_PID, ask_all=True)
        assert [one.port for one in found] == [22, 9100]

    @pytest.mark.parametrize("port", [1936, 8080, 9090, 9100, 9345, 9999, 15692])
    def test_known_ports_and_9100_to_9999_are_asked(self, port: int) -> None:
        assert asked(("127.0.0.1", port, OTHER)) == [(f"http://127.0.0.1:{port}/metrics",)]

    @pytest.mark.parametrize("name", ["x_exporter", "prometheus-x-exporter"])
    def test_exporters_by_name_are_asked_on_any_port(self, name: str) -> None:
        assert asked(("127.0.0.1", 45001, Process(10, 1, name))) == [("http://127.0.0.1:45001/metrics",)]

    @pytest.mark.parametrize(
        "own",
        [
            Process(OWN_PID, 1, "python3"),
            Process(11, OWN_PID, "x_exporter"),
            Process(12, 1, "exporter_proxy"),
        ],
    )
    def test_neither_oneself_nor_ones_children_nor_another_proxy(self, own: Process) -> None:
        assert asked(("127.0.0.1", 9100, own)) == []

    @pytest.mark.parametrize(
        ("addresses", "hosts"),
        [
            (["0.0.0.0"], ["127.0.0.1"]),
            (["::"], ["127.0.0.1", "[::1]"]),
            (["0.0.0.0", "::"], ["127.0.0.1", "[::1]"]),
            (["::1"], ["[::1]"]),
            (["127.0.0.5"], ["127.0.0.5"]),
            (["10.0.0.5", "127.0.0.1", "2001:db8::1"], ["127.0.0.1", "10.0.0.5", "[2001:db8::1]"]),
        ],
    )
    @pytest.mark.parametrize("owner", [NODE, 113])
    def test_one_exporter_is_asked_once_where_it_can_be_reached(
        self, addresses: list[str], hosts: list[str], owner: Process | int
    ) -> None:
        urls = tuple(f"http://{host}:9100/metrics" for host in hosts)
        assert asked(*((address, 9100, owner) for address in addresses)) == [urls]

    def test_an_address_that_needs_an_interface_is_left_out(self) -> None:
        assert asked(("fe80::1", 9100, NODE)) == []

    def test_two_processes_on_one_port_are_asked_each_on_its_own_address(self) -> None:
        assert asked(("::", 9100, NODE), ("127.0.0.1", 9100, OTHER)) == [
            ("http://127.0.0.1:9100/metrics",),
            ("http://[::1]:9100/metrics",),
        ]

    def test_workers_that_share_an_address_are_asked_once(self) -> None:
        assert asked(("0.0.0.0", 9100, NODE), ("0.0.0.0", 9100, OTHER)) == [
            ("http://127.0.0.1:9100/metrics",)
        ]

    def test_of_several_holders_the_exporter_is_the_owner(self) -> None:
        listener = Listener(ip_address("::"), 45001, 0, 7)
        systemd = Process(1, 0, "systemd")
        (candidate,) = find_candidates([listener], {7: (systemd, OTHER, NODE)}, known_ports(), OWN_PID)
        assert candidate.owner == NODE
        (candidate,) = find_candidates(
            [Listener(ip_address("::"), 9100, 0, 7)], {7: (systemd, OTHER)}, known_ports(), OWN_PID
        )
        assert candidate.owner == OTHER

    @pytest.mark.parametrize(
        ("port", "path"),
        [
            (9115, "/metrics"),
            (9116, "/metrics"),
            (9221, "/metrics"),
            (19999, "/api/v1/allmetrics?format=prometheus"),
        ],
    )
    def test_the_path_of_a_known_port(self, port: int, path: str) -> None:
        assert asked(("127.0.0.1", port, OTHER)) == [(f"http://127.0.0.1:{port}{path}",)]

    def test_in_the_order_of_ports(self) -> None:
        assert asked(("127.0.0.1", 9200, 1), ("127.0.0.1", 9104, 1), ("127.0.0.1", 9150, 1)) == [
            (f"http://127.0.0.1:{port}/metrics",) for port in (9104, 9150, 9200)
        ]


class TestPages:
    @pytest.mark.parametrize(
        ("page", "families"),
        [
            ("up 1\n", {"up"}),
            ('# HELP a b\n# TYPE a gauge\na{x="}",y="\\""} NaN 1700000000000\n\n', {"a"}),
            (
                '# TYPE a_seconds histogram\na_seconds_bucket{le="+Inf"} 1e+06\n',
                {"a_seconds", "a_seconds_bucket"},
            ),
            ("a 1\r\n  b_total  -.5  \n", {"a", "b_total"}),
            ('a_total 1.0 # {trace_id="x"} 0.5 1700000000.5\n# EOF\n', {"a_total"}),
            ('{"http.duration", x="1"} +Inf\nb{} -Inf\n', {"b"}),
            ("# just a comment\nns:rule:rate5m 1", {"ns:rule:rate5m"}),
        ],
    )
    def test_exposition_text(self, page: str, families: set[str]) -> None:
        assert parse_families(page) == frozenset(families)

    @pytest.mark.parametrize(
        "page",
        [
            "",
            "# HELP a b\n# TYPE a gauge\n",
            "ok\n",
            "up1\n",
            "OK 200 fine\n",
            "<!doctype html>\n<title>x</title>\n",
            '{"status": "ok"}\n',
            "a 1\n<html>\n",
            "a 1 2 3\n",
            'a{x="1" 1\n',
            "Active connections: 291\n",
            "\ufffd\ufffd\x00\x01",
        ],
    )
    def test_other_text(self, page: str) -> None:
        assert parse_families(page) is None

    @pytest.mark.parametrize(
        "line",
        [
            "a" + " " * 250_000 + "x",
            "a 1" + " " * 250_000 + "x",
            "a{" + "}" * 250_000 + "x",
            "a{" + "} 1 " * 60_000 + "x",
            "a" * 250_000 + "!",
            "a " + "1" * 250_000 + "!",
            "a 1 " + "1" * 250_000 + "!",
            "{" * 250_000,
            "a " + "1 # " * 60_000 + "\x00",
        ],
        ids=range(9),
    )
    def test_a_hostile_line_costs_no_time(self, line: str) -> None:
        started = time.process_time()
        parse_families(line)
        assert time.process_time() - started < 5


class TestNames:
    @pytest.mark.parametrize(
        ("families", "process", "port", "expected"),
        [
            # What the page itself says beats everything.
            ({"node_exporter_build_info", "mysql_up"}, "prometheus-redis-exporter", 9104, "node_exporter"),
            ({"Foo_Bar_exporter_build_info"}, None, 45001, "foo_bar_exporter"),
            # Two build infos: an agent with several exporters inside; the program's name decides.
            (
                {"node_exporter_build_info", "mysqld_exporter_build_info"},
                "grafana-agent-exporter",
                45001,
                "grafana_agent_exporter",
            ),
            ({"build_info"}, "prometheus-exporter-exporter", 9999, "exporter_exporter"),
            ({"x"}, "prometheus-node-exporter", 9104, "node_exporter"),
            ({"x"}, "node_exporter", 9104, "node_exporter"),
            ({"x"}, "nginx-prometheus-exporter", 45001, "nginx_exporter"),
            ({"x"}, "Foo.Bar-exporter", 45001, "foo_bar_exporter"),
            # A configuration takes no name that begins with a digit.
            ({"x"}, "prometheus-389ds-exporter", 45001, "_389ds_exporter"),
            ({"x"}, "9p-exporter", 45001, "_9p_exporter"),
            # The port's prefix confirms it, though others match as well.
            ({"haproxy_up", "node_load1"}, "java", 9101, "haproxy_exporter"),
            ({"haproxy_up"}, None, 1936, "haproxy"),
            # Metrics on a port that is another's.
            ({"redis_up", "go_goroutines"}, None, 9100, "redis_exporter"),
            ({"gitlab_runner_jobs"}, None, 9500, "gitlab_runner"),
            ({"container_cpu"}, None, 9500, "cadvisor"),
            # Metrics that fit two exporters name neither.
            ({"haproxy_up"}, None, 9345, "port_9345"),
            ({"redis_up", "mysql_up"}, None, 9345, "port_9345"),
            # Nothing but the port.
            ({"x"}, None, 9273, "telegraf"),
            ({"x"}, "java", 9100, "node_exporter"),
            ({"x"}, "java", 9345, "port_9345"),
            ({"_exporter_build_info"}, "_exporter", 9345, "port_9345"),
        ],
    )
    def test_exporter_name(self, families: set[str], process: str | None, port: int, expected: str) -> None:
        assert exporter_name(families, process, port) == expected

    def test_names_that_occur_twice_get_their_port(self) -> None:
        named = [("a", 1), ("b", 2), ("a", 3), ("a", 3), ("a_1", 4)]
        assert unique_names(named) == ["a_1_2", "b", "a_3", "a_3_2", "a_1"]

    def test_names_that_were_found_are_such_as_a_configuration_takes(self) -> None:
        """One that it refused would keep ``serve --discover`` from serving any."""
        named = [(exporter_name({"x"}, f"{stem}-exporter", 45001), 45001) for stem in ("9p", "a" * 200) * 3]
        names = unique_names(named)
        assert len(set(names)) == 6
        found = [FoundExporter(name, "http://127.0.0.1:1/metrics", 45001, None, None) for name in names]
        config = parse_config(config_text(found).encode(), "discovered")
        assert [exporter.name for exporter in config.exporters] == names

    def test_the_table_of_ports(self) -> None:
        ports = known_ports()
        assert len(ports) > 70
        assert ports[9100].name == "node_exporter"
        assert ports[9100].family_prefix == "node_"
        assert ports[9273].family_prefix == ""
        for port, known in ports.items():
            assert port == known.port
            assert known.path.startswith("/")
            assert known.name.replace("_", "").isalnum()


class TestConfigText:
    FOUND = (
        FoundExporter("node_exporter", "http://127.0.0.1:9100/metrics", 9100, 10, "prometheus-node-exporter"),
        FoundExporter("port_9345", "http://[::1]:9345/metrics", 9345, None, None),
        FoundExporter(
            "netdata", "http://127.0.0.1:19999/api/v1/allmetrics?format=prometheus", 19999, 11, "x: # 'y'"
        ),
    )

    def test_it_loads_as_a_config_and_says_nothing_but_urls(self) -> None:
        text = config_text(self.FOUND, "[::1]:9099")
        assert yaml.safe_load(text) == {
            "listen": "[::1]:9099",
            "exporters": {found.name: {"url": found.url} for found in self.FOUND},
        }
        config = parse_config(text.encode(), "found.yml")
        assert [str(address) for address in config.listen] == ["[::1]:9099"]
        assert [(exporter.name, str(exporter.url)) for exporter in config.exporters] == [
            (found.name, found.url) for found in self.FOUND
        ]

    def test_without_exporters_it_shows_how_to_add_one(self) -> None:
        text = config_text([], "127.0.0.1:9099")
        assert yaml.safe_load(text) == {"listen": "127.0.0.1:9099", "exporters": {}}
        with pytest.raises(ConfigError) as refused:
            parse_config(text.encode(), "none.yml")
        assert len(refused.value.problems) == 1
        assert "exporters: nothing to serve" in str(refused.value)
        example = [line[1:] for line in text.splitlines() if line.startswith("#   ") and "HOST" not in line]
        assert yaml.safe_load("\n".join(example)) == {
            "node_exporter": {"url": "http://127.0.0.1:9100/metrics"}
        }

    def test_a_person_sees_what_each_one_is(self) -> None:
        text = config_text(self.FOUND, "127.0.0.1:9099")
        assert "  # prometheus-node-exporter, port 9100\n  node_exporter:\n" in text
        assert "http://HOST:PORT/node_exporter/metrics" in text


class TestOtherTexts:
    FOUND = (
        FoundExporter("node_exporter", "http://127.0.0.1:9100/metrics", 9100, 7, "prometheus-node-exporter"),
        FoundExporter("x", "http://[::1]:9200/metrics", 9200, None, None),
    )

    def test_a_table_has_aligned_columns(self) -> None:
        assert table_text(self.FOUND) == (
            "NAME           URL                            PID  PROCESS\n"
            "node_exporter  http://127.0.0.1:9100/metrics  7    prometheus-node-exporter\n"
            "x              http://[::1]:9200/metrics      -    -\n"
        )

    def test_json_has_every_field(self) -> None:
        assert json.loads(json_text(self.FOUND)) == [dataclasses.asdict(one) for one in self.FOUND]
