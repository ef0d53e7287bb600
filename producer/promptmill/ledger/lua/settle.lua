-- settle: the submitter ends prompts itself (cancel): one error for all given positions, or for all that are left.
local id, json = ARGV[3], ARGV[4]
if redis.call('EXISTS', key('record:' .. id)) == 0 then return 0 end
local positions = split(ARGV[5])
if #positions == 0 then
  for position = 0, redis.call('HGET', key('record:' .. id), 'count') - 1 do positions[#positions + 1] = position end
end
local left = unanswered(id, positions)
local pairs = {}
for _, position in ipairs(left) do
  pairs[#pairs + 1] = position
  pairs[#pairs + 1] = json
end
answer(id, pairs)
if is_complete(id) then drop(id) end
return #left
