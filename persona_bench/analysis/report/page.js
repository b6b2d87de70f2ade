(function () {
  "use strict";
  var table = document.getElementById("claims");
  var bodies = Array.prototype.slice.call(table.tBodies);
  var heads = Array.prototype.slice.call(table.tHead.rows[0].cells);
  var original = bodies.slice();
  var verdict = document.getElementById("by-verdict");
  var trait = document.getElementById("by-trait");
  var words = document.getElementById("by-words");
  var order = document.getElementById("by-order");
  var count = document.getElementById("count");

  function filter() {
    var shown = 0;
    var text = words.value.trim().toLowerCase();
    bodies.forEach(function (body) {
      var is = body.dataset.verdict;
      var keep =
        (!verdict.value || is === verdict.value || (verdict.value === "ran" && is !== "not run")) &&
        (!trait.value || body.dataset.trait === trait.value) &&
        body.textContent.toLowerCase().indexOf(text) >= 0;
      body.hidden = !keep;
      if (keep) shown += 1;
    });
    count.textContent = shown + " of " + bodies.length + " shown";
  }

  function place(rows) {
    rows.forEach(function (body) {
      table.appendChild(body);
    });
  }

  function sort(column, up) {
    heads.forEach(function (head, i) {
      if (i === column) head.setAttribute("aria-sort", up ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    function key(body) {
      return body.rows[0].cells[column].dataset.sort;
    }
    bodies.sort(function (a, b) {
      var x = key(a), y = key(b);
      // What has no value comes last, whichever way.
      if (x === "" || y === "") return (x === "") - (y === "");
      var both = !isNaN(Number(x)) && !isNaN(Number(y));
      var way = both ? Number(x) - Number(y) : x.localeCompare(y);
      return up ? way : -way;
    });
    place(bodies);
  }

  heads.forEach(function (head, i) {
    head.querySelector("button").addEventListener("click", function () {
      order.value = String(i);
      sort(i, head.getAttribute("aria-sort") !== "ascending");
    });
  });
  order.addEventListener("change", function () {
    if (order.value !== "") return sort(Number(order.value), true);
    heads.forEach(function (head) {
      head.removeAttribute("aria-sort");
    });
    bodies = original.slice();
    place(bodies);
  });
  verdict.addEventListener("change", filter);
  trait.addEventListener("change", filter);
  words.addEventListener("input", filter);

  table.querySelectorAll("details").forEach(function (box) {
    box.addEventListener("toggle", function () {
      var copy = box.querySelector("img[data-figure]");
      if (!box.open || !copy || copy.src) return;
      var source = document.getElementById(copy.dataset.figure);
      copy.src = source.src;
      copy.alt = source.alt;
      copy.hidden = false;
      box.querySelector(".plain").hidden = true;
    });
  });
  // A printed page shows what the screen shows, and the tables that fold open.
  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("section > details").forEach(function (box) {
      box.open = true;
    });
  });
  document.querySelector(".tools").hidden = false;
  filter();
})();
